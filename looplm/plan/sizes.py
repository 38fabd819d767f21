"""Bytes of the arrays of a traced program on one device of a mesh that may be another than the traced one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from looplm.ops.scopes import OPTIMIZER
from looplm.plan.flat import Operation
from looplm.plan.layout import ROWS, spec_of, split_axes


@dataclass(frozen=True)
class Sizes:
    """Sizes on a mesh. A step is traced with one sequence a device; with more, what is split like the batch grows."""

    traced: Mapping[str, int]
    """Sizes of the mesh that the program was traced on."""
    mesh: Mapping[str, int]
    """Sizes of the mesh that is asked about. It differs in axes only that no device alone sees: of the batch."""
    rows: int
    """Sequences of a micro-batch on a device."""

    def alone(self, operation: Operation) -> float:
        """Return how many times larger the arrays are of what a device does by itself: they belong to its sequences, or
        to its part of the optimizer's matrices."""
        return self.traced["fsdp"] / self.mesh["fsdp"] if OPTIMIZER in operation.scopes else float(self.rows)

    def of(self, aval: Any, alone: float | None = None) -> float:
        """Bytes of an array on a device. alone: of what a device does by itself."""
        size, itemsize = getattr(aval, "size", 0), getattr(getattr(aval, "dtype", None), "itemsize", 0)
        axes = split_axes(spec_of(aval))
        if alone is not None:
            return size * itemsize * alone
        if ROWS in axes:
            return size * itemsize * self.rows / math.prod(self.traced[axis] for axis in axes)
        return size * itemsize / math.prod(self.mesh[axis] for axis in axes)
