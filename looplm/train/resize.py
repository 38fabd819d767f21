"""First weights of another size than the run's, where the run asks for it: rows of the vocabulary and of learned
positions, and loops.

All else is refused leaf by leaf by who compares the two trees. A longer context with rotary positions is no matter of
sizes: `model.rope.scaling` may differ from what the weights were trained with.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from looplm.checkpoint.digest import named_leaves
from looplm.checkpoint.tree import Kind
from looplm.model.functional import FunctionalLM
from looplm.model.layers import LoopParam

OF_AXES = {"vocab": "vocabulary", "positions": "positions"}
"""What has to be allowed for an axis to have another size."""


@dataclass(frozen=True)
class Needs:
    """What has to be allowed for every dim of a parameter to have another size; empty where nothing allows it."""

    dims: tuple[str, ...]

    @classmethod
    def of(cls, variable: nnx.Param, rank: int) -> "Needs":
        # Axes do not name the dims of stacks, which come first, and of loops, which are the first of them.
        names = [OF_AXES.get(axis, "") for axis in variable.axes]
        dims = [""] * (rank - len(names)) + names
        return cls(("loops", *dims[1:]) if isinstance(variable, LoopParam) else tuple(dims))


def fitted(stored: Mapping[str, Kind], lm: FunctionalLM, allowed: Collection[str]) -> dict[str, Kind]:
    """The stored arrays as they will be: dims that may have another size have the one that the model wants."""
    wanted, rules = named_leaves(lm.shapes), named_leaves(needs_of(lm))
    return {
        name: kind._replace(shape=_sizes(kind.shape, wanted[name].shape, rules[name].dims, allowed))
        if name in wanted
        else kind
        for name, kind in stored.items()
    }


def as_stored(abstract: Any, stored: Mapping[str, Kind], mesh: jax.sharding.Mesh) -> Any:
    """What to restore: leaves of another size as they are stored, whole on every device; the others as they will be."""
    whole = NamedSharding(mesh, PartitionSpec())

    def leaf(path: tuple[Any, ...], wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = stored[jax.tree_util.keystr(path, simple=True, separator=".")].shape
        return wanted if shape == wanted.shape else jax.ShapeDtypeStruct(shape, wanted.dtype, sharding=whole)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def resized(value: Any, shape: tuple[int, ...], needs: Needs) -> Any:
    """The value, or a host array of the shape: rows that are too many are cut off. New ones are the mean of the others,
    as a token of which nothing is known is a mean one; of loops the last, as later loops use it already; of positions
    the old ones again, from the first on (arXiv 2004.05150, section 5)."""
    if value.shape == shape:
        return value
    array = np.asarray(value)
    for dim, (size, rule) in enumerate(zip(shape, needs.dims, strict=True)):
        old = array.shape[dim]
        if size <= old or rule == "positions":
            array = np.take(array, range(size), axis=dim, mode="wrap")
        else:
            new = np.take(array, [old - 1], axis=dim) if rule == "loops" else array.mean(dim, keepdims=True)
            array = np.concatenate([array, np.repeat(new, size - old, axis=dim)], axis=dim)
    return array


def needs_of(lm: FunctionalLM) -> Any:
    """A tree like the parameters, of `Needs`."""
    return lm.map(lambda leaf, variable: Needs.of(variable, len(leaf.shape)), lm.shapes)


def _sizes(
    stored: tuple[int, ...], wanted: tuple[int, ...], rules: tuple[str, ...], allowed: Collection[str]
) -> tuple[int, ...]:
    if len(stored) != len(wanted):
        return stored
    triples = zip(stored, wanted, rules, strict=True)
    return tuple(want if rule in allowed else have for have, want, rule in triples)
