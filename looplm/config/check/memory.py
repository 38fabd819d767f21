"""Memory over the sequence, and rows that go on over steps."""

from collections.abc import Iterator

from looplm.config.check.rule import Rules
from looplm.config.schema import (
    CompressiveMemory,
    FixedDepth,
    LearnedPositions,
    Memory,
    MixtureAttention,
    NeverHalting,
    NoCarry,
    Run,
    SequenceMLP,
    SingleCore,
    SupervisedRows,
)


def _streams(run: Run) -> Iterator[str]:
    data = run.data
    if data.order != "streams":
        return
    if len(data.sources) > 1:
        yield (
            f"data.order=streams has every row go on in one dataset, and data.train mixes {len(data.sources)}; use one "
            "source, or data.order=shuffled"
        )
    if not all(isinstance(source.data, str) for source in data.sources):
        yield "data.order=streams is of token datasets, and examples do not go on in one another; use shuffled"
    if data.packing != "split":
        yield f"data.order=streams goes on where a window ended, and data.packing={data.packing} fills it; use split"
    if run.optim.guard.rewinds:
        yield (
            f"optim.guard.rewinds={run.optim.guard.rewinds} leaves batches out, and data.order=streams goes on from "
            "each; use 0"
        )


def _memory(run: Run) -> Iterator[str]:
    model, memory, mesh = run.model, run.model.memory, run.mesh
    if memory is None or not (memory.length or memory.compressed_length):
        return
    name = f"model.memory={memory.kind}"
    if run.data.order != "streams":
        yield f"{name} is of what stood before a sequence, and data.order={run.data.order} mixes them; use streams"
    for refused, told, remedy in (
        (not isinstance(model.core, SingleCore), f"model.core={model.core.kind} has no one block", "single"),
        (model.attention_mask != "causal", f"model.attention_mask={model.attention_mask} looks ahead", "causal"),
        (isinstance(model.attention, SequenceMLP), "model.attention=sequence_mlp has no keys", "dense"),
        (isinstance(model.positions, LearnedPositions), "model.positions=learned ends with its table", "relative"),
        (not isinstance(model.halting, NeverHalting), f"model.halting={model.halting.kind} hides tokens", "never"),
        (model.front is not None, "model.front stands between it and the tokens", "null"),
        (model.value_embedding is not None, "model.value_embedding is of tokens, which it does not hold", "null"),
        (not isinstance(run.carry, NoCarry), f"carry={run.carry.kind} keeps rows of its own", "none"),
        (isinstance(run.objective, SupervisedRows), "objective.kind=supervised is of rows that end", "final"),
        (run.teacher is not None, "a teacher remembers nothing", "null"),
        (run.loop.depth_per == "sequence", "loop.depth_per=sequence has rows at different loops", "batch"),
    ):
        if refused:
            yield f"{name} does not go with this: {told}; use {remedy}"
    for axis in ("context", "tensor"):
        recipes = any(f"mesh.{axis}" in recipe.settings for recipe in run.recipes)
        if getattr(mesh, axis) != 1 or recipes:
            yield f"{name} needs whole sequences on a device, and mesh.{axis} splits them; use mesh.{axis}=1"
    whole = run.loop.backprop_loops is None or run.loop.backprop_loops >= run.loop.num_loops
    yield from _compressed(run, memory, name)
    if memory.loops == "all" and (not isinstance(run.loop.depth, FixedDepth) or not whole):
        yield (
            f"{name} with loops=all keeps what every loop read, and in this run not all loops are run with a gradient "
            "in every step; use model.memory.loops=last"
        )


def _compressed(run: Run, memory: Memory, name: str) -> Iterator[str]:
    if not isinstance(memory, CompressiveMemory) or not memory.compressed_length:
        return
    length = run.data.sequence_length
    if memory.length < length:
        yield (
            f"{name} compresses the tokens that a sequence takes the place of, and model.memory.length={memory.length} "
            f"holds fewer than data.sequence_length={length}; use a length of at least {length}"
        )
    if length % memory.rate:
        yield (
            f"{name} makes a place of model.memory.rate={memory.rate} tokens, of which "
            f"data.sequence_length={length} is no multiple; use a rate that divides it"
        )
    if isinstance(run.model.attention, MixtureAttention):
        yield f"{name} does not go with this: model.attention=mixture chooses experts for values; use dense"


RULES: Rules = (_streams, _memory)
