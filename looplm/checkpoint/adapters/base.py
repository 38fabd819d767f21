"""Official tensors as permuted, reshaped and concatenated pieces of our parameters.

Every mapping is a permutation of numbers, so what holds for weights holds for their gradients.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from looplm.config.schema import Model
from looplm.model.functional import Params


@dataclass(frozen=True)
class Part:
    """One of our leaves (or one layer of it), as it stands in an official tensor."""

    path: str
    """Dotted path of the leaf."""
    order: tuple[int, ...]
    """Our dims in the order in which the official tensor has them."""
    shape: tuple[int, ...]
    """What they are merged into."""


@dataclass(frozen=True)
class Official:
    """An official tensor: parts one after the other along its first dim."""

    name: str
    parts: tuple[Part, ...]
    layer: int | tuple[int, int] | None = None
    """Which layer of our stacked leaves it belongs to, or (layer, expert); None where nothing is stacked."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


def name_of_embeddings(tensors: Sequence[Official]) -> str:
    """The official name of the embeddings."""
    return next(tensor.name for tensor in tensors if tensor.parts[0].path == "embedding.table")


class Placed(NamedTuple):
    """A part, the official tensor that holds it, and where in it: from which entry of its first dim."""

    part: Part
    tensor: Official
    start: int


def by_leaf(tensors: Iterable[Official]) -> dict[str, list[Placed]]:
    """What every one of our leaves is made of, by its path."""
    found: dict[str, list[Placed]] = {}
    for tensor in tensors:
        start = 0
        for part in tensor.parts:
            found.setdefault(part.path, []).append(Placed(part, tensor, start))
            start += part.shape[0]
    return found


def rows_of(placed: Sequence[Placed], get: Callable[[str], Any], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The rows of one of our leaves in their order, float32, each with a leading dim of 1; one that is not stacked is
    whole. Memory is that of a row and an official tensor.

    Args:
        placed: what it is made of.
        get: reads one official tensor of the right shape by name.
        shape: of the leaf.
    """
    rows: dict[int | None, list[Placed]] = {}
    for one in placed:
        layer = one.tensor.layer
        rows.setdefault(layer[0] if isinstance(layer, tuple) else layer, []).append(one)
    for layer in sorted(rows, key=lambda layer: layer or 0):
        row = np.empty(shape if layer is None else shape[1:], np.float32)
        for part, tensor, start in rows[layer]:
            ours = row[tensor.layer[1]] if isinstance(tensor.layer, tuple) else row
            _put(np.asarray(get(tensor.name))[start : start + part.shape[0]], part, ours)
        yield row if layer is None else row[None]


def _put(piece: np.ndarray, part: Part, ours: np.ndarray) -> None:
    """Writes a piece of an official tensor where it belongs."""
    permuted = [ours.shape[dim] for dim in part.order]
    ours[...] = piece.reshape(permuted).transpose(np.argsort(part.order))


def official_tensor(tensor: Official, ours: Callable[[str, int | tuple[int, int] | None], np.ndarray]) -> np.ndarray:
    """One official tensor. ours: reads one of our leaves, or one layer of it, by its path."""
    pieces = [ours(part.path, tensor.layer).transpose(part.order).reshape(part.shape) for part in tensor.parts]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def to_params(tensors: Sequence[Official], get: Callable[[str], Any], shapes: Params, dtype: Any) -> Params:
    """Builds our parameters from official tensors, one of them in memory at a time.

    Args:
        get: reads one official tensor of the right shape by name.
        shapes: the parameters as shapes.
        dtype: of what is returned.

    Returns:
        A tree like `shapes` of numpy arrays.
    """
    params: Params = {}
    for tensor in tensors:
        value, start = np.asarray(get(tensor.name)), 0
        for part in tensor.parts:
            piece = value[start : start + part.shape[0]]
            start += part.shape[0]
            leaf = _leaf(params, shapes, part.path, dtype)
            ours = leaf if tensor.layer is None else leaf[tensor.layer]
            _put(piece, part, ours)
    return params


def to_official(tensors: Iterable[Official], params: Params) -> dict[str, Any]:
    """Official tensors by name from a tree like the parameters: weights, or gradients."""

    def piece(tensor: Official, part: Part) -> Any:
        leaf = _at(params, part.path)
        ours = leaf if tensor.layer is None else leaf[tensor.layer]
        return jnp.transpose(ours, part.order).reshape(part.shape)

    return {tensor.name: jnp.concatenate([piece(tensor, part) for part in tensor.parts]) for tensor in tensors}


def linear(path: str, inputs: Sequence[int], outputs: Sequence[int]) -> Part:
    """Our kernel (*inputs, *outputs), stored as a matrix (out, in)."""
    dims = range(len(inputs) + len(outputs))
    order = (*dims[len(inputs) :], *dims[: len(inputs)])
    return Part(path, order, (math.prod(outputs), math.prod(inputs)))


def vector(path: str, *shape: int) -> Part:
    """Stored as it is."""
    return Part(path, tuple(range(len(shape))), shape)


def rotation_table(model: Model, shape: tuple[int, ...]) -> np.ndarray:
    """Cosines and sines of all positions and pairs of dims, as Huginn and Parcae store them beside their weights: what
    the official code turns with, whatever the config says. shape: (1, positions, 1, pairs, 2) of the stored one."""
    H = model.head_size
    frequencies = model.rope.theta ** (-2.0 * np.arange(H // 2) / H)
    angles = np.outer(np.arange(shape[1] if len(shape) > 1 else 0), frequencies)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None, :, None]


def _leaf(params: Params, shapes: Params, path: str, dtype: Any) -> np.ndarray:
    *parents, last = path.split(".")
    node = params
    for name in parents:
        node = node.setdefault(name, {})
    if last not in node:
        node[last] = np.empty(_at(shapes, path).shape, dtype)
    return node[last]


def _at(tree: Params, path: str) -> Any:
    for name in path.split("."):
        tree = tree[name]
    return tree
