"""Official tensors as permuted, reshaped and concatenated pieces of our parameters.

Every mapping is a permutation of numbers, so what holds for weights holds for their gradients.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
            permuted = [ours.shape[dim] for dim in part.order]
            ours[...] = piece.reshape(permuted).transpose(np.argsort(part.order))
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
