"""What a step sends between devices, from the layouts in its traced program.

In explicit mode every array of a program says how it lies on the mesh, so every collective can be read off: a dim that
is joined is gathered; a product over a split dim is a sum over devices, scattered where its reader splits it; what one
device does (`shard_map`) names its collectives itself. A compiler may send the same by other collectives: on TPUs it
all-reduces gradients whose parts are narrower than a tile (`train/machine.py`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from looplm.compile.collectives import RAGGED, Collective, sent_bytes
from looplm.plan.flat import Level, Operation, Value
from looplm.plan.layout import axes_of, moves, spec_of, split_axes
from looplm.plan.sizes import Sizes

INSIDE = {
    "psum": "all-reduce", "psum_invariant": "all-reduce", "pmax": "all-reduce", "pmin": "all-reduce",
    "all_gather": "all-gather", "all_gather_invariant": "all-gather", "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all", "ppermute": "collective-permute", "ragged_all_to_all": RAGGED,
}  # fmt: skip
"""Collectives of `shard_map`."""
SUM, SCATTER, GATHER, EXCHANGE = "all-reduce", "reduce-scatter", "all-gather", "all-to-all"
LINEAR = {"reshape", "transpose", "convert_element_type", "name", "squeeze", "expand_dims", "neg", "copy"}
"""The sum over devices may as well be taken after these."""
ADDS = {"add", "add_any"}
Sent = tuple[str, set[str], Any]
"""(kind, mesh axes, the array that a device has of it before)."""


def sent(
    level: Level,
    sizes: Sizes,
    turns: Callable[[Operation], float],
    *,
    depth: int = 0,
    times: float = 1.0,
    alone: float | None = None,
    around: str = "",
) -> Iterator[Collective]:
    """Yield all collectives of more than one device.

    Args:
        turns: how often the inside of an operation runs.
        depth: loops around the level.
        times: how often the level runs.
        alone: see `Sizes.of`.
        around: the operation that it is inside of.
    """
    left_open = _left_open(level) if around == "shard_map" else {}
    for kind, axes, aval in _of_level(level, left_open):
        size = math.prod(sizes.mesh[axis] for axis in axes)
        if size > 1:
            wire = sizes.of(aval, alone) * sent_bytes(kind, size)
            ordered = tuple(axis for axis in sizes.mesh if axis in axes)
            yield Collective(kind, (str(aval.dtype),), ordered, size, wire, depth, times, "")
    for operation in level.operations:
        count = turns(operation)
        within = sizes.alone(operation) if operation.name == "shard_map" else alone
        deeper = depth + (operation.name in ("scan", "while") and count > 1)
        for inside in operation.inside:
            yield from sent(
                inside, sizes, turns, depth=deeper, times=times * count, alone=within, around=operation.name
            )


def _left_open(level: Level) -> dict[Value, frozenset[str]]:
    """Sums over devices that are a result of a level and nothing else, so that its reader may scatter them."""
    read = {value for operation in level.operations for value in operation.inputs}
    return {
        out: frozenset(operation.parameters["axes"])
        for operation in level.operations
        if operation.name in ("psum", "psum_invariant")
        for out in operation.outputs
        if out in level.outputs and out not in read
    }


def _of_level(level: Level, left_open: Mapping[Value, frozenset[str]]) -> Iterator[Sent]:
    uses = Counter(value for operation in level.operations for value in operation.inputs)
    pending: dict[Value, frozenset[str]] = {}
    """Sums over devices that nobody has read yet."""
    for operation in level.operations:
        inputs, out = [value for value in operation.inputs if value is not None], next(iter(operation.outputs), None)
        waiting = {pending.get(value) if uses[value] == 1 else None for value in inputs}
        if out is not None and operation.name in LINEAR | ADDS and len(waiting) == 1 and None not in waiting:
            pending[out] = waiting.pop() or frozenset()
            for value in inputs:
                pending.pop(value, None)
            continue
        for value in inputs:
            if axes := pending.pop(value, None):
                split = set(split_axes(spec_of(out.aval))) if operation.name == "reshard" and out else set()
                scattered = axes & split if uses[value] == 1 else set()
                yield from _sums(value.aval, set(axes), set(scattered))
        if operation.name in ("dot_general", "reduce_sum") and out is not None:
            partial = _partial(operation)
            scattered = partial & set(split_axes(spec_of(out.aval)))
            if scattered or not partial:
                yield from _sums(out.aval, partial, scattered)
            else:
                pending[out] = frozenset(partial)
        elif operation.name == "reshard":
            yield from _of_reshard(operation)
        elif operation.name == "shard_map":
            results = zip(operation.outputs, operation.inside[0].outputs, strict=True)
            found = _left_open(operation.inside[0])
            pending |= {outer: found[inner] for outer, inner in results if inner in found}
        elif operation.name in INSIDE and inputs and out not in left_open:
            axes = operation.parameters.get("axes", operation.parameters.get("axis_name"))
            # How many rows a ragged exchange sends depends on data: at most the smaller of both sides.
            sides = inputs[: 2 if operation.name == "ragged_all_to_all" else 1]
            yield INSIDE[operation.name], set(axes_of(axes)), min(sides, key=lambda side: side.aval.size).aval
    for value, axes in pending.items():
        yield SUM, set(axes), value.aval


def _sums(aval: Any, axes: set[str], scattered: set[str]) -> Iterator[Sent]:
    if scattered:
        yield SCATTER, scattered, aval
    if axes - scattered:
        yield SUM, axes - scattered, aval


def _partial(operation: Operation) -> set[str]:
    """The axes over which a product or a sum is split, but for those along which the result stays a partial sum."""
    first, after = operation.inputs[0], spec_of(operation.outputs[0].aval)
    if first is None:
        return set()
    dims = (
        operation.parameters["axes"]
        if operation.name == "reduce_sum"
        else operation.parameters["dimension_numbers"][0][0]
    )
    entries = spec_of(first.aval).partitions
    return {axis for dim in dims if dim < len(entries) for axis in axes_of(entries[dim])} - set(after.unreduced)


def _of_reshard(operation: Operation) -> Iterator[Sent]:
    value = operation.inputs[0]
    if value is None or not moves(operation):
        return
    before, after = spec_of(value.aval), spec_of(operation.outputs[0].aval)
    was, becomes = set(split_axes(before)), set(split_axes(after))
    summed = set(before.unreduced) - set(after.unreduced)
    yield from _sums(value.aval, summed, summed & becomes)
    if joined := was - becomes:
        yield GATHER, joined, value.aval

    def dim(entries: tuple, axis: str) -> int:
        return next(i for i, entry in enumerate(entries) if axis in axes_of(entry))

    if moved := {axis for axis in was & becomes if dim(before.partitions, axis) != dim(after.partitions, axis)}:
        yield EXCHANGE, moved, value.aval
