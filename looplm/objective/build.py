"""From the config to an objective."""

from collections.abc import Callable
from typing import Any

from looplm.config.schema import (
    DecidedCrossEntropy,
    Distillation,
    ElasticCrossEntropy,
    ExpectedCrossEntropy,
    FinalCrossEntropy,
    GateImprovement,
    OwnObjective,
    SelfDistillation,
    ShortcutCrossEntropy,
    SupervisedRows,
    WeightedCrossEntropy,
)
from looplm.config.schema import Objective as Config
from looplm.objective.base import Objective
from looplm.objective.distill import Distilled, SelfDistilled
from looplm.objective.elastic import Elastic
from looplm.objective.final import Final
from looplm.objective.gate import Decided, Gate
from looplm.objective.per_loop import Expected, Weighted
from looplm.objective.shortcut import Shortcut
from looplm.objective.supervised import Supervised

SHIPPED: dict[type, Callable[[Any], Objective]] = {
    FinalCrossEntropy: Final,
    ExpectedCrossEntropy: Expected,
    WeightedCrossEntropy: Weighted,
    GateImprovement: Gate,
    DecidedCrossEntropy: Decided,
    Distillation: Distilled,
    SelfDistillation: SelfDistilled,
    ElasticCrossEntropy: Elastic,
    ShortcutCrossEntropy: Shortcut,
    SupervisedRows: Supervised,
}
"""What computes each objective."""


def build_objective(config: Config) -> Objective:
    """Make the objective that the config names."""
    return config.build() if isinstance(config, OwnObjective) else SHIPPED[type(config)](config)
