"""Layouts in a traced program, and what a change of layout comes to."""

from typing import Any

from jax.sharding import PartitionSpec

from looplm.plan.flat import Operation

ROWS = "data"
"""The axis that splits batches and never a parameter."""


def spec_of(aval: Any) -> PartitionSpec:
    """Return how an array lies on the mesh."""
    return getattr(getattr(aval, "sharding", None), "spec", None) or PartitionSpec()


def split_axes(spec: PartitionSpec) -> list[str]:
    """Return the mesh axes that split the dims of an array."""
    return [axis for entry in spec.partitions for axis in axes_of(entry)]


def axes_of(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes of one dim."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def moves(operation: Operation) -> bool:
    """Tell whether a reshard makes another array.

    Else it is a promise about the gradient (`reduced`), or would make a batch whole on every device. JAX writes the
    latter where it knows no partial sums, for the gradient of a table's rows; the compiler leaves the batch split and
    sums the tables instead.
    """
    before, after = _specs(operation)
    if ROWS in split_axes(before) and ROWS not in split_axes(after):
        return False
    return before.partitions != after.partitions or before.unreduced != after.unreduced


def cuts_batch(operation: Operation) -> bool:
    """Tell whether every device keeps its rows of a batch that was whole, and so never is."""
    if operation.name != "reshard" or operation.inputs[0] is None:
        return False
    before, after = _specs(operation)
    return ROWS in split_axes(after) and ROWS not in split_axes(before)


def _specs(operation: Operation) -> tuple[PartitionSpec, PartitionSpec]:
    value = operation.inputs[0]
    return spec_of(value and value.aval), spec_of(operation.outputs[0].aval)
