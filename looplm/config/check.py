"""Rules that involve several fields of a run. Each is a small function that yields what does not fit, and the remedy.

Rules that need the devices (does the mesh fit them?) are in `sharding.mesh`; rules that need the data (does the
vocabulary fit?) are where the data is opened.
"""

from collections.abc import Callable, Iterator

from looplm.config.schema import ExpectedCrossEntropy, FixedDepth, GateImprovement, Run, ScheduledDepth, UniformDepth
from looplm.errors import UserError


def check(run: Run) -> Run:
    """Returns `run` unchanged, or raises one UserError that lists everything that does not fit."""
    faults = [fault for rule in RULES for fault in rule(run)]
    if faults:
        raise UserError("; ".join(faults))
    return run


def _heads(run: Run) -> Iterator[str]:
    model = run.model
    if model.head_dim is None and model.dim % model.num_heads:
        yield (
            f"model.num_heads={model.num_heads} does not divide model.dim={model.dim}; "
            f"use one of {_divisors(model.dim)} or set model.head_dim"
        )
    elif (head_dim := model.head_dim or model.dim // model.num_heads) % 2:
        yield f"the head size {head_dim} is odd; rotary positions need an even one"
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        yield (
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads={model.num_heads}; "
            f"use one of {_divisors(model.num_heads)}"
        )


def _value_embedding(run: Run) -> Iterator[str]:
    embedding, dim = run.model.value_embedding, run.model.dim
    if embedding and embedding.gate_channels > dim:
        yield (
            f"model.value_embedding.gate_channels={embedding.gate_channels} is more than model.dim={dim}; "
            "use at most that"
        )


def _batch(run: Run) -> Iterator[str]:
    data = run.data
    if data.batch_tokens % data.sequence_length:
        nearest = max(1, round(data.batch_tokens / data.sequence_length)) * data.sequence_length
        yield (
            f"data.batch_tokens={data.batch_tokens} is no multiple of data.sequence_length={data.sequence_length}; "
            f"use {nearest}"
        )
    elif (sequences := data.batch_tokens // data.sequence_length) % data.accumulation_steps:
        yield (
            f"data.accumulation_steps={data.accumulation_steps} does not divide the {sequences} sequences of a batch; "
            f"use one of {_divisors(sequences)}"
        )


def _depth(run: Run) -> Iterator[str]:
    depth, loop = run.loop.depth, run.loop
    if isinstance(depth, UniformDepth) and depth.min_loops > depth.max_loops:
        yield f"loop.depth.min_loops={depth.min_loops} is above loop.depth.max_loops={depth.max_loops}; swap them"
    if isinstance(depth, ScheduledDepth) and 0 not in depth.loops:
        yield f"loop.depth.loops={depth.loops} says nothing about the first step; add an entry for step 0"
    largest = max_loops(run)
    if largest is None and loop.backprop_loops is None:
        yield f"loop.depth.kind={depth.kind} has no largest depth; set loop.backprop_loops, e.g. {loop.num_loops}"
    if largest and loop.backprop_loops and loop.backprop_loops > largest:
        yield f"loop.backprop_loops={loop.backprop_loops} is more than the {largest} loops that run; use at most that"


def _objective(run: Run) -> Iterator[str]:
    if isinstance(run.objective, ExpectedCrossEntropy | GateImprovement) and run.model.exit_gate is None:
        yield f"objective.kind={run.objective.kind} needs an exit gate; set model.exit_gate={{}} or objective=final"


def _eval(run: Run) -> Iterator[str]:
    if run.eval.every_steps and run.data.validation is None:
        yield f"eval.every_steps={run.eval.every_steps} needs held-out data; set data.validation, or eval.every_steps=0"
    depths = run.eval.depths
    if depths is not None and (not depths or list(depths) != sorted(set(depths))):
        yield f"eval.depths={list(depths)} must be ascending, each depth once; use {sorted(set(depths)) or [1]}"


def _schedule(run: Run) -> Iterator[str]:
    if (warmup := run.optim.schedule.warmup_steps) >= run.num_steps:
        yield (
            f"optim.schedule.warmup_steps={warmup} leaves no step of num_steps={run.num_steps} for the rest; "
            f"set optim.schedule.warmup_steps={run.num_steps // 10}, or more num_steps"
        )


RULES: tuple[Callable[[Run], Iterator[str]], ...] = (
    _heads,
    _value_embedding,
    _batch,
    _depth,
    _objective,
    _eval,
    _schedule,
)


def max_loops(run: Run) -> int | None:
    """The largest number of loops that a training step of this run can have; None for a law without a bound."""
    match run.loop.depth:
        case FixedDepth():
            return run.loop.num_loops
        case UniformDepth(max_loops=largest):
            return largest
        case ScheduledDepth(loops=loops):
            return max(loops.values())
        case _:
            return None


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
