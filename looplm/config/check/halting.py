"""Halting rules and what goes with them."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops
from looplm.config.check.rule import Rules
from looplm.config.schema import (
    ACTHalting,
    ConvReLU,
    ConvSwiGLU,
    DecidedCrossEntropy,
    DenseAttention,
    Distillation,
    ElasticCrossEntropy,
    ExpectedCrossEntropy,
    ExpertChoice,
    FixedDepth,
    GateImprovement,
    MoE,
    RelativePositions,
    Run,
    SelfDistillation,
    SingleCore,
    TokenChoice,
    WeightedCrossEntropy,
)

READS_ALL = (
    ExpectedCrossEntropy
    | WeightedCrossEntropy
    | GateImprovement
    | DecidedCrossEntropy
    | SelfDistillation
    | ElasticCrossEntropy
)
"""Objectives that read the state of every loop, or of any."""


def _mean_of_states(run: Run) -> Iterator[str]:
    halting, objective = run.model.halting, run.objective
    reads_all = isinstance(objective, READS_ALL) or (isinstance(objective, Distillation) and objective.loops == "all")
    if isinstance(halting, ACTHalting | TokenChoice) and reads_all:
        yield (
            f"model.halting={halting.kind} says after the last loop what is read of a token, and objective="
            f"{objective.kind} reads every loop by itself; use objective=final, or model.halting=never"
        )


def _cost(run: Run) -> Iterator[str]:
    halting = run.model.halting
    if isinstance(halting, ACTHalting) and halting.cost.starts_at >= run.num_steps:
        yield (
            f"model.halting.cost.starts_at={halting.cost.starts_at} is not before the end, num_steps={run.num_steps}; "
            "use less, or set model.halting.cost.weight=0"
        )


def _routers(run: Run) -> Iterator[str]:
    halting, loop = run.model.halting, run.loop
    largest = max_loops(run)
    if isinstance(halting, ExpertChoice) and loop.depth_per == "sequence":
        yield (
            "model.halting=expert_choice has a router for every loop, and loop.depth_per=sequence has sequences at "
            "different loops at a time; use loop.depth_per=batch"
        )
    if isinstance(halting, ExpertChoice) and sorted(halting.capacities, reverse=True) != list(halting.capacities):
        yield (
            f"model.halting.capacities={halting.capacities} grow, and a loop takes tokens of the loop before alone; "
            "let them fall"
        )
    if isinstance(halting, TokenChoice) and largest is not None and halting.loops > largest:
        yield (
            f"model.halting=token_choice gives a token up to {halting.loops} loops, and at most {largest} run; let its "
            f"loops be {largest}"
        )


def _gathered_rows(run: Run) -> Iterator[str]:
    """Rows that are gathered are not neighbours, and their number has to be known where the program is written."""
    model, loop = run.model, run.loop
    if not (isinstance(model.halting, ExpertChoice) and model.halting.gathers):
        return
    if not loop.unroll:
        yield "model.halting.gathers=true has loops of several shapes, and one is scanned; set loop.unroll=true"
    if not isinstance(loop.depth, FixedDepth) or loop.growth is not None or loop.backprop_growth is not None:
        yield "model.halting.gathers=true needs a depth that never changes; use loop.depth=fixed, and no growth"
    elif loop.backprop_loops is not None and loop.backprop_loops < loop.num_loops:
        yield (
            f"model.halting.gathers=true needs every loop written out, and with loop.backprop_loops="
            f"{loop.backprop_loops} of {loop.num_loops} the first are not; leave it out"
        )
    unfit = {
        "model.halting.sees_left=true": model.halting.sees_left,
        f"model.attention_mask={model.attention_mask}": model.attention_mask != "causal",
        f"model.attention_window={model.attention_window}": model.attention_window is not None,
        f"model.attention={model.attention.kind}": not isinstance(model.attention, DenseAttention),
        f"model.positions={model.positions.kind}": isinstance(model.positions, RelativePositions),
        f"model.feed_forward={model.feed_forward.kind}": isinstance(model.feed_forward, MoE | ConvSwiGLU | ConvReLU),
        f"model.core={model.core.kind}": not isinstance(model.core, SingleCore),
        "model.memory": model.memory is not None,
        "model.value_embedding": model.value_embedding is not None,
    }
    for part, there in unfit.items():
        if there:
            yield f"model.halting.gathers=true cannot be with {part}; leave one of them out"


RULES: Rules = (_mean_of_states, _cost, _routers, _gathered_rows)
