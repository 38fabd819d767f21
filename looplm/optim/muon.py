"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for stacked and sharded matrices.

The update of a matrix is its Nesterov momentum, orthogonalised by Newton-Schulz iterations: optax does both. Here is
what optax leaves open: the size of the update, and where the iterations run when matrices are split over devices.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from optax.contrib import MuonDimensionNumbers

from looplm.model.functional import Params
from looplm.sharding.collective import on_each_device

UPDATE_RMS = 0.2
"""Root mean square of the entries of an update of full rank, about that of AdamW's: one learning rate and one weight
decay then fit both (arXiv 2502.16982, section 2.2)."""


def scale_by_muon(momentum: float, newton_schulz_steps: int, dims: dict[str, Any]) -> optax.GradientTransformation:
    """The direction of Muon, before learning rate and weight decay.

    Args:
        momentum: decay of the gradients' moving average, a step.
        newton_schulz_steps: iterations of the quintic that takes all singular values near 1 (0.7 to 1.2).
        dims: MuonDimensionNumbers of every matrix; a leading dim that they do not name counts stacked matrices.
    """
    muon = optax.contrib.scale_by_muon(ns_steps=newton_schulz_steps, beta=momentum, weight_dimension_numbers=dims)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        del params
        whole_updates = jax.tree.map(make_whole, updates, dims)
        whole_state = state._replace(mu=jax.tree.map(make_whole, state.mu, dims))
        directions, whole_state = _where_they_lie(muon.update, whole_updates, whole_state)
        directions = jax.tree.map(split_again, directions, updates, dims)
        mu = jax.tree.map(split_again, whole_state.mu, state.mu, dims)
        return jax.tree.map(_scale, directions, dims), whole_state._replace(mu=mu)

    return optax.GradientTransformation(muon.init, update)


def _where_they_lie(update: Callable[..., tuple[Any, Any]], updates: Params, state: Any) -> tuple[Params, Any]:
    """Runs an update of whole matrices on each device alone. Explicit mode would refuse optax's reshapes of a stack of
    stacks, the experts of every layer."""
    if jax.sharding.get_abstract_mesh().empty:
        return update(updates, state)
    layouts = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, (updates, state))
    return on_each_device(update, updates, state, out_specs=layouts)


def make_whole(matrices: jax.Array, dims: MuonDimensionNumbers) -> jax.Array:
    """Lays matrices out so that each is whole on the device that iterates on it.

    A Newton-Schulz iteration contracts both dims of a matrix, so a split one would be gathered in each. Instead a stack
    is spread over the devices that its matrices were split over, filled up with zeros (which stay zeros) to a multiple
    of their number. A single matrix becomes whole on every device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return matrices
    if _is_stack(matrices, dims):
        sizes = jax.sharding.get_abstract_mesh().shape
        missing = -matrices.shape[0] % math.prod(sizes[axis] for axis in jax.typeof(matrices).sharding.spec if axis)
        matrices = jnp.pad(matrices, ((0, missing), *((0, 0),) * (matrices.ndim - 1)))
    return reduce(jax.sharding.reshard, _layouts(matrices, dims)[1:], matrices)


def split_again(whole: jax.Array, like: jax.Array, dims: MuonDimensionNumbers) -> jax.Array:
    """Undoes `make_whole`: the shape and sharding of `like`."""
    if jax.sharding.get_abstract_mesh().empty:
        return whole
    return reduce(jax.sharding.reshard, _layouts(like, dims)[-2::-1], whole)[: like.shape[0]]


def _layouts(matrices: jax.Array, dims: MuonDimensionNumbers) -> list[PartitionSpec]:
    """From a parameter's layout to whole matrices; of a stack, one mesh axis at a time moves to the leading dim.

    Each such move is an all-to-all. XLA would do two in one step by gathering everything everywhere.
    """
    spec = jax.typeof(matrices).sharding.spec
    if not _is_stack(matrices, dims):
        return [spec, PartitionSpec()]
    layouts, split = [spec], list(spec[1:])
    moved: tuple[str, ...] = ()
    for dim, axis in enumerate(spec[1:]):
        if axis is not None:
            split[dim], moved = None, (*moved, axis)
            layouts.append(PartitionSpec(moved, *split))
    return layouts


def _is_stack(matrices: jax.Array, dims: MuonDimensionNumbers) -> bool:
    return matrices.ndim > len(dims.reduction_axis) + len(dims.output_axis)


def _scale(direction: jax.Array, dims: MuonDimensionNumbers) -> jax.Array:
    """Gives an update whose singular values are 1 the root mean square UPDATE_RMS."""
    sides = (math.prod(direction.shape[dim] for dim in side) for side in dims)
    return UPDATE_RMS * math.sqrt(max(sides)) * direction
