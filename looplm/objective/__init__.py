"""Losses over loops: what a step minimises. Sums and counts, never means, so that they add over micro-batches."""

from looplm.objective.base import Objective as Objective
from looplm.objective.base import Rows as Rows
from looplm.objective.base import Sums as Sums
from looplm.objective.base import evaluate as evaluate
from looplm.objective.base import with_frozen as with_frozen
from looplm.objective.build import build_objective as build_objective
