"""The core: what its numbers and the other parts of the model allow."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops
from looplm.config.check.halting import READS_ALL
from looplm.config.check.rule import Rules
from looplm.config.schema import (
    FixedDepth,
    Graphs,
    InputState,
    LatentFeedbackCore,
    LearnedPositions,
    MixtureAttention,
    MoE,
    NeverHalting,
    NoCarry,
    NoConditioning,
    NoInjection,
    Run,
    ScheduledDepth,
    Source,
    TwoSpeedCore,
)


def _inner_loops(run: Run) -> Iterator[str]:
    core = run.model.core
    if not isinstance(core, TwoSpeedCore):
        return
    given, count = core.inner_backprop, core.inner_loops
    trained = given if isinstance(given, tuple) else () if given is None else (given,)
    if given == ():
        yield "model.core.inner_backprop=[] says it of no loop; use e.g. [1], or null for all inner loops"
    if not count and (given is not None or core.high_layers is not None):
        name = "inner_backprop" if given is not None else "high_layers"
        yield (
            f"model.core.{name} has no part in model.core.inner_loops=0, where the low state stays as it is; use "
            "more inner loops, or leave it out"
        )
    elif trained and max(trained) > count:
        yield (
            f"model.core.inner_backprop={max(trained)} is more than the {count} of model.core.inner_loops; use at "
            "most that"
        )
    if isinstance(given, tuple) and run.loop.depth_per == "sequence":
        yield (
            f"model.core.inner_backprop={list(given)} differs from loop to loop, and loop.depth_per=sequence has "
            "sequences at different loops at a time; use one number, or loop.depth_per=batch"
        )


def _parts(run: Run) -> Iterator[str]:
    """What is reported or numbered once a loop, of one block."""
    model = run.model
    if not isinstance(model.core, TwoSpeedCore):
        return
    if isinstance(model.feed_forward, MoE) or isinstance(model.attention, MixtureAttention):
        yield (
            "model.core=two_speed calls a block several times a loop, and experts are balanced by one call; use a "
            "dense model.feed_forward and model.attention, or model.core=single"
        )
    if model.value_embedding is not None:
        yield (
            "model.value_embedding counts layers of one block, and "
            "model.core=two_speed may have two; leave model.value_embedding out"
        )
    if model.residual_step != "one":
        yield (
            f"model.residual_step={model.residual_step} counts loops of one block; use one with model.core=two_speed"
        )


def _latents(run: Run) -> Iterator[str]:
    """What feeds back latents goes over one sequence again and again, every time with the same parameters."""
    model, loop, core = run.model, run.loop, run.model.core
    if not isinstance(core, LatentFeedbackCore):
        return
    name, largest = "model.core=latent_feedback", max_loops(run)
    if core.token >= model.vocab_size:
        yield f"model.core.token={core.token} is no id below model.vocab_size={model.vocab_size}; use one"
    for refused, told, remedy in (
        (model.prelude_layers > 0, "a prelude has read the latents before they are filled", "model.prelude_layers=0"),
        (model.coda_layers > 0, "a coda stands between what is fed back and the head", "model.coda_layers=0"),
        (model.read_out is not None, "a read-out stands between what is fed back and the head", "model.read_out=null"),
        (model.final_norm, "what is fed back has had the norm that the head reads", "model.final_norm=false"),
        (not model.norm_at_loop_end, "the norm before the head is that of a loop's end", "model.norm_at_loop_end=true"),
        (isinstance(model.positions, LearnedPositions), "their table is not added to states", "model.positions=rotary"),
        (model.embedding_norm, "its norm is not put on states", "model.embedding_norm=false"),
        (not isinstance(model.state_init, InputState), "the first loop reads its input", "model.state_init=input"),
        (not isinstance(model.injection, NoInjection), "the input is in the state", "model.injection=none"),
        (not isinstance(model.conditioning, NoConditioning), "loops differ", "model.conditioning=none"),
        *((True, "loops differ", f"model.{name}=null") for name in model.own_loops),
        (model.residual_step != "one", "loops differ", "model.residual_step=one"),
        (model.adapter is not None, "adapters may differ from loop to loop", "model.adapter=null"),
        (not isinstance(model.halting, NeverHalting), "every token runs all loops", "model.halting=never"),
        (model.exit_gate is not None, "every token runs all loops", "model.exit_gate=null"),
        (model.attention_mask != "causal", "a latent is what was read before it", "model.attention_mask=causal"),
        (model.front is not None, "latents are among tokens alone", "model.front=null"),
        (model.value_embedding is not None, "latents have no token's value", "model.value_embedding=null"),
        (not isinstance(run.carry, NoCarry), "a state is of one pass", "carry=none"),
        (isinstance(run.objective, READS_ALL), "loops before the last have latents to fill", "objective=final"),
        (run.mesh.context != 1 or run.mesh.tensor != 1, "a device needs whole sequences", "mesh.data or mesh.fsdp"),
        (not isinstance(loop.depth, FixedDepth | ScheduledDepth), "every row needs its loops", "loop.depth=fixed"),
        (loop.growth is not None, "every row needs its loops", "loop.growth=null"),
        (
            loop.backprop_growth is not None
            or (loop.backprop_loops is not None and largest is not None and loop.backprop_loops < largest),
            "gradients flow through all latents",
            "loop.backprop_loops=null and loop.backprop_growth=null",
        ),
    ):
        if refused:
            yield f"{name} does not go with this: {told}; use {remedy}"


def _latents_of_tasks(run: Run) -> Iterator[str]:
    """Every latent of an example needs its loop, in every stage."""
    core, data, loop = run.model.core, run.data, run.loop
    if not isinstance(core, LatentFeedbackCore):
        return
    given = [("data.train", task, _fewest_loops(run, source)) for source in data.sources for task in (source.data,)]
    for key, task, loops in (*given, ("data.validation", data.validation, loop.num_loops)):
        if not isinstance(task, Graphs):
            continue
        if core.token != Graphs.LATENT:
            yield f"model.core.token={core.token} is not the latent of {key}; use {Graphs.LATENT}"
        if loops <= task.most_latents:
            yield (
                f"{key} has examples of {task.most_latents} latents, and {loops} loops fill {loops - 1}; use "
                f"{task.most_latents + 1} in loop.num_loops, and in loop.depth from the step on at which it is read"
            )


def _fewest_loops(run: Run, source: Source) -> int:
    """The fewest loops of a step that may read the source."""
    depth = run.loop.depth
    if not isinstance(depth, ScheduledDepth):
        return run.loop.num_loops
    steps = [step for step in {*source.changes, *depth.loops} if source.weight_at(step)]
    return min((depth.loops[max(begin for begin in depth.loops if begin <= step)] for step in steps), default=1 << 30)


RULES: Rules = (_inner_loops, _parts, _latents, _latents_of_tasks)
