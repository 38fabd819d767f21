"""What a step holds on a device and moves between memory and chip, added up from its traced program.

Elementwise operations have no memory of their own: a compiler computes them where they are used (fusion), so what they
read stays until then. Results of products, loops and kernels are held from where they are made to where they are read
last. A loop's carry has one place, and an elementwise result takes the place of an operand that nobody reads any more.
A compiler orders operations and shares places better or worse than that, so this is an estimate: docs/scaling.md says
how close it comes.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from looplm.ops.rounds import LATER_ROUNDS
from looplm.ops.scopes import DETACHED, MICRO_BATCHES
from looplm.plan.flat import Level, Operation, Value
from looplm.plan.lifetimes import SLICES, UPDATES, Step, lifetimes
from looplm.plan.sizes import Sizes

ON_CHIP = 16 * 2**20
"""Bytes that stay on a chip between who makes them and who reads them: caches and vmem are of 40 to 128 MiB. With this
the seconds of memory traffic are within 30 % of those that `looplm compile` counts (docs/scaling.md)."""


class Held(NamedTuple):
    """Bytes of a device."""

    peak: float
    """Held at the fullest moment."""
    moved: float
    """Between memory and chip."""


class Turns:
    """How often the inside of an operation runs.

    Args:
        detached_loops: the loops before the gradient's window.
        micro_batches: of a step.
    """

    def __init__(self, detached_loops: float, micro_batches: int) -> None:
        self.detached_loops, self.micro_batches = detached_loops, micro_batches

    def __call__(self, operation: Operation) -> float:
        """Return the number of turns; 1 where it is no loop."""
        if LATER_ROUNDS in operation.scopes:
            return 0.0
        if operation.name == "scan":
            of_micro_batches = operation.scopes.endswith(MICRO_BATCHES)
            return self.micro_batches if of_micro_batches else operation.parameters["length"]
        return self.detached_loops if operation.name == "while" and DETACHED in operation.scopes else 1.0


def held(level: Level, owned: Iterable[Value], sizes: Sizes, turns: Turns, alone: float | None = None) -> Held:
    """Add up a level.

    Args:
        owned: inputs whose place may be taken once they have been read; they are part of the peak.
        alone: see `Sizes.of`.
    """
    known: dict[Value, float] = {}

    def of(value: Value) -> float:
        if value not in known:
            known[value] = sizes.of(value.aval, alone)
        return known[value]

    def travels(value: Value) -> float:
        return size if (size := of(value)) > ON_CHIP or value in outside else 0.0

    alive, outside = set(owned), set(level.inputs)
    live = math.fsum(map(of, alive))
    peak, moved = live, 0.0
    for step in lifetimes(level):
        dying = [value for value in step.dies if value in alive]
        early = [value for value in dying if step.in_place or value in step.carried]
        new, inner = math.fsum(map(of, step.makes)), Held(0.0, 0.0)
        if step.operation.inside:
            inner = _inside(step.operation, sizes, turns, alone)
            moved += turns(step.operation) * inner.moved
        else:
            moved += _moved(step, travels)
        live -= math.fsum(map(of, early))
        # What a loop carries, and the results of a branch, have their place inside.
        peak = max(peak, live + new - math.fsum(map(of, step.made_inside)) + inner.peak, live + new)
        live += new - math.fsum(of(value) for value in dying if value not in early)
        alive.difference_update(dying)
        alive.update(step.makes)
    return Held(peak, moved)


def _inside(operation: Operation, sizes: Sizes, turns: Turns, alone: float | None) -> Held:
    alone = sizes.alone(operation) if operation.name == "shard_map" else alone
    if operation.name in ("scan", "while"):
        return held(operation.body, operation.carried_inside, sizes, turns, alone)
    found = [held(level, (), sizes, turns, alone) for level in operation.inside]
    return Held(*map(max, zip(*found, strict=True)))


def _moved(step: Step, travels: Callable[[Value], float]) -> float:
    operation, written = step.operation, math.fsum(map(travels, step.makes))
    if operation.name in SLICES:
        return 2 * written
    if (place := UPDATES.get(operation.name)) is not None:
        update = operation.inputs[place]
        return 0.0 if update is None else 2 * travels(update)
    return written + math.fsum(map(travels, step.reads))
