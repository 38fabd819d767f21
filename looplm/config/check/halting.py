"""Halting rules and what goes with them."""

from collections.abc import Iterator

from looplm.config.check.rule import Rules
from looplm.config.schema import (
    ACTHalting,
    Distillation,
    ExpectedCrossEntropy,
    GateImprovement,
    Run,
    SelfDistillation,
    WeightedCrossEntropy,
)

READS_ALL = ExpectedCrossEntropy | WeightedCrossEntropy | GateImprovement | SelfDistillation
"""Objectives that read the state of every loop."""


def _mean_of_states(run: Run) -> Iterator[str]:
    halting, objective = run.model.halting, run.objective
    reads_all = isinstance(objective, READS_ALL) or (isinstance(objective, Distillation) and objective.loops == "all")
    if isinstance(halting, ACTHalting) and reads_all:
        yield (
            f"model.halting=act is read as a mean of all loops, and objective={objective.kind} reads every loop by "
            "itself; use objective=final, or model.halting=never"
        )


def _cost(run: Run) -> Iterator[str]:
    halting = run.model.halting
    if isinstance(halting, ACTHalting) and halting.cost.starts_at >= run.num_steps:
        yield (
            f"model.halting.cost.starts_at={halting.cost.starts_at} is not before the end, num_steps={run.num_steps}; "
            "use less, or set model.halting.cost.weight=0"
        )


RULES: Rules = (_mean_of_states, _cost)
