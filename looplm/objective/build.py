"""From the config to an objective."""

from looplm.config.schema import ExpectedCrossEntropy, FinalCrossEntropy
from looplm.config.schema import Objective as Config
from looplm.objective.base import Objective
from looplm.objective.expected import Expected
from looplm.objective.final import Final


def build_objective(config: Config) -> Objective:
    match config:
        case FinalCrossEntropy():
            return Final()
        case ExpectedCrossEntropy():
            return Expected(config.entropy_weight)
