"""Halting rules and what goes with them."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops
from looplm.config.check.rule import Rules
from looplm.config.schema import (
    ACTHalting,
    DecidedCrossEntropy,
    Distillation,
    ExpectedCrossEntropy,
    ExpertChoice,
    GateImprovement,
    Run,
    SelfDistillation,
    TokenChoice,
    WeightedCrossEntropy,
)

READS_ALL = ExpectedCrossEntropy | WeightedCrossEntropy | GateImprovement | DecidedCrossEntropy | SelfDistillation
"""Objectives that read the state of every loop."""


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


RULES: Rules = (_mean_of_states, _cost, _routers)
