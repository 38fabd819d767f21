"""Gather once: parameters are made whole before the loops, their gradients are reduced once after them.

Matrices are resharded to a spec that is replicated over fsdp and marked `reduced` over the batch axes: their cotangents
then stay per-device partial sums through every loop, layer and micro-batch, and the transpose of this one reshard is
the one reduction. JAX has no elementwise product with a `reduced` operand, so vectors (norm scales, biases) are spread
to one copy per sequence, (1, B, 1, ...) in effect; their cotangents stay where the sequence is, and the transpose of
the spreading is again one reduction.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from looplm.sharding.rules import BATCH_AXES, parameter_spec


def gather(parameter: jax.Array, axes: tuple[str, ...], *, elementwise: bool, batch_size: int) -> jax.Array:
    """Makes one sharded parameter ready for the loops.

    Args:
        parameter: (..., *axes) with leading stack dims that `axes` does not name.
        axes: its logical axes.
        elementwise: True for what is multiplied with or added to activations (B, S, *axes).
        batch_size: B, sequences of the (micro-)batch that the gathered parameter will meet.

    Returns:
        The whole parameter; elementwise ones as (..., B, 1, *axes). Without a mesh: the parameter itself.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return parameter
    whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in parameter_spec(axes, parameter.shape)))
    if not elementwise:
        reduced = PartitionSpec(*whole, reduced=frozenset(BATCH_AXES))
        return jax.sharding.reshard(parameter, reduced)
    stack = parameter.ndim - len(axes)
    shape = (*parameter.shape[:stack], batch_size, 1, *parameter.shape[stack:])
    dims = (*range(stack), *range(stack + 2, len(shape)))
    spread = PartitionSpec(*whole[:stack], BATCH_AXES, None, *whole[stack:])
    return jax.lax.broadcast_in_dim(jax.sharding.reshard(parameter, whole), shape, dims, out_sharding=spread)


def zero_gradient(gathered: jax.Array) -> jax.Array:
    """Zeros of the type that the gradient of a gathered parameter has, to sum micro-batches into."""
    if jax.sharding.get_abstract_mesh().empty:
        return jnp.zeros_like(gathered)
    spec = jax.typeof(gathered).sharding.spec
    return jnp.zeros(
        gathered.shape, gathered.dtype, out_sharding=PartitionSpec(*spec.partitions, unreduced=spec.reduced)
    )
