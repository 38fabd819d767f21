"""From the config to an objective."""

from looplm.config.schema import (
    ExpectedCrossEntropy,
    FinalCrossEntropy,
    GateImprovement,
    OwnObjective,
    WeightedCrossEntropy,
)
from looplm.config.schema import Objective as Config
from looplm.objective.base import Objective
from looplm.objective.final import Final
from looplm.objective.gate import Gate
from looplm.objective.per_loop import Expected, Weighted


def build_objective(config: Config) -> Objective:
    """Make the objective that the config names."""
    match config:
        case FinalCrossEntropy():
            return Final(config)
        case ExpectedCrossEntropy():
            return Expected(config)
        case WeightedCrossEntropy():
            return Weighted(config)
        case GateImprovement():
            return Gate(config)
        case OwnObjective():
            return config.build()
