"""Gather once, reduce once: how sharded parameters meet activations, and how their gradients come back.

Before the loops a parameter is made whole over `fsdp` and marked `reduced` over every mesh axis that splits the
activations that it meets. Its cotangent then stays a partial sum on every device, through all loops, layers and
micro-batches; one reshard at the end is the one reduction. It travels and is held in the compute type, and its gradient
is summed in float32 by a stand-in (`Whole`).

With `sharding.gather = per_layer` the matrices of the layers stay split, and `use` gathers them where they are used.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from looplm.sharding.rules import activation_spec, parameter_spec, splitting


def gather(parameter: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Make one sharded parameter ready for the loops; one that is ready, or has no mesh, comes back as it is.

    Args:
        parameter: (..., *axes); leading dims of stacks are not named by `axes`.
        axes: its logical axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not splitting(mesh) or jax.typeof(parameter).sharding.spec.reduced:
        return parameter
    spec = parameter_spec(axes, parameter.shape, mesh)
    whole = [None if axis == "fsdp" else axis for axis in spec]
    reduced = splitting(mesh) - set(whole)
    # In two steps, because the gradient comes back by the same steps: see `reduce_gradient`.
    parameter = jax.sharding.reshard(parameter, PartitionSpec(*spec, reduced=reduced - set(spec)))
    return jax.sharding.reshard(parameter, PartitionSpec(*whole, reduced=reduced))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whole:
    """A parameter that is used in one type, while its gradient is summed in another."""

    value: jax.Array
    stand_in: jax.Array
    """Zeros of the parameter's own type, never read: what is differentiated."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""
        return self.value.shape

    def astype(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Cast it, as an array is cast. Call it in the innermost loop, so that the gradient is summed in the stand-in's
        type."""
        return _value(self).astype(dtype)


def stand_in(value: jax.Array, parameter: jax.Array) -> jax.Array:
    """Make zeros sharded like `value`, in the type of `parameter`."""
    sharding = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(value).sharding
    return jnp.zeros(value.shape, parameter.dtype, out_sharding=sharding)


def zero_gradient(stand_in: jax.Array) -> jax.Array:
    """Make zeros of the type of a stand-in's gradient, to sum micro-batches into."""
    if jax.sharding.get_abstract_mesh().empty:
        return jnp.zeros_like(stand_in)
    spec = jax.typeof(stand_in).sharding.spec
    partial_sums = PartitionSpec(*spec.partitions, unreduced=spec.reduced)
    return jnp.zeros(stand_in.shape, stand_in.dtype, out_sharding=partial_sums)


def reduce_gradient(gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    """Sum a gradient's partial sums over the devices; the sum is split like the parameter."""
    if jax.sharding.get_abstract_mesh().empty:
        return gradient
    spec, partial_sums = jax.typeof(parameter).sharding.spec, jax.typeof(gradient).sharding.spec.unreduced
    if "fsdp" in partial_sums and "fsdp" in spec:
        # A reshard of its own, which XLA makes a reduce-scatter: half the bytes of an all-reduce, and no whole sum.
        gradient = jax.sharding.reshard(gradient, PartitionSpec(*spec, unreduced=partial_sums - {"fsdp"}))
    return jax.sharding.reshard(gradient, spec)


def use(parameter: nnx.Param, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Return the value of a parameter, whole, in the type of the computation."""
    return gather(parameter.get_value().astype(dtype), parameter.axes)


@jax.custom_vjp
def _value(whole: Whole) -> jax.Array:
    return whole.value


_value.defvjp(
    lambda whole: (whole.value, whole),
    lambda whole, cotangent: (Whole(None, cotangent.astype(whole.stand_in.dtype)),),  # type: ignore[arg-type]
)


def per_channel(
    function: Callable[..., jax.Array], vectors: Sequence[jax.Array], x: jax.Array, *xs: jax.Array
) -> jax.Array:
    """Apply function(*vectors, x, *xs), where vectors are multiplied with or added to activations of one shape.

    JAX has no elementwise product of a `reduced` operand with one that is split, so the gradient is taken by hand: the
    backward pass applies the function to vectors that are broadcast, and sums their cotangents on each device alone.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function(*vectors, x, *xs)
    return _per_channel(function, tuple(vectors), x, *xs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _per_channel(function: Callable[..., jax.Array], vectors: tuple[jax.Array, ...], *xs: jax.Array) -> jax.Array:
    return function(*map(_unmarked, vectors), *xs)


def _per_channel_forward(function: Callable, vectors: tuple, *xs: jax.Array) -> tuple[jax.Array, tuple]:
    return _per_channel(function, vectors, *xs), (vectors, xs)


def _per_channel_backward(function: Callable, saved: tuple, cotangent: jax.Array) -> tuple:
    vectors, xs = saved

    def spread(vector: jax.Array) -> jax.Array:
        like, dims = xs[0], range(xs[0].ndim - vector.ndim, xs[0].ndim)
        return jax.lax.broadcast_in_dim(_unmarked(vector), like.shape, dims, out_sharding=jax.typeof(like).sharding)

    def sum_up(vector: jax.Array, cotangent: jax.Array) -> jax.Array:
        spec = jax.typeof(vector).sharding.spec
        partial_sums = PartitionSpec(*spec.partitions, unreduced=spec.reduced)
        return jax.lax.reduce_sum(cotangent, range(cotangent.ndim - vector.ndim), out_sharding=partial_sums)

    _, pull_back = jax.vjp(function, *map(spread, vectors), *xs)
    cotangents = pull_back(cotangent)
    return tuple(map(sum_up, vectors, cotangents)), *cotangents[len(vectors) :]


_per_channel.defvjp(_per_channel_forward, _per_channel_backward)


def _unmarked(vector: jax.Array) -> jax.Array:
    return jax.sharding.reshard(vector, PartitionSpec(*jax.typeof(vector).sharding.spec.partitions))


def on_each_device(function: Callable[..., Any], *arrays: Any, out_specs: Any, check_vma: bool = True) -> Any:
    """Run `jax.shard_map` over the whole mesh; parameters among the (trees of) arrays may be marked `reduced`.

    check_vma: whether JAX sees to it that values that are the same on several devices are; kernels do not tell.
    """
    return jax.shard_map(function, out_specs=out_specs, check_vma=check_vma)(*arrays)


def vary(x: jax.Array, axes: Iterable[str]) -> jax.Array:
    """Let devices along these axes have values of their own from here on, so that the gradient stays a partial sum on
    each. To be called inside `on_each_device`."""
    return jax.lax.pcast(x, tuple(axes), to="varying")


def vary_whole(parameter: jax.Array) -> jax.Array:
    """Let devices have gradients of their own for a parameter along all axes over which it is the same. To be called
    inside `on_each_device`."""
    return vary(parameter, jax.typeof(parameter).mat.reduced)


def lay_out(x: jax.Array, *axes: str) -> jax.Array:
    """Lay an activation out by these logical axes; without a mesh it comes back as it is."""
    spec = activation_spec(*axes)
    return x if spec is None else jax.sharding.reshard(x, spec)


def gather_sequence(x_BSD: jax.Array) -> jax.Array:
    """Go from the layout of the residual stream, whose sequence is split over `tensor` too, to that of a branch."""
    return lay_out(x_BSD, "batch", "sequence", "embed")


def split_sequence(x_BSD: jax.Array) -> jax.Array:
    """Go back to the layout of the residual stream."""
    return lay_out(x_BSD, "batch", "residual", "embed")
