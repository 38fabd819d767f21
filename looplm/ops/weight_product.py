"""The product of activations with a matrix, whose gradient has the matrix's own order of dims."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from looplm.sharding.rules import splitting


def weight_product(equation: str, x: jax.Array, kernel: jax.Array, out: PartitionSpec | None) -> jax.Array:
    """Return einsum(equation, x, kernel) with the sharding `out`.

    On one device the kernel's gradient is written by hand. JAX takes it with the cotangent first and turns the result,
    so that XLA on CPUs computes a wide cotangent twice, once turned, and does not use its fastest product: forward and
    backward of a SwiGLU took 1.3 times as long (docs/decisions.md).

    Args:
        equation: activations, kernel -> result; no dim is in all three, and none in one alone.
        x: activations, any float type.
        kernel: of the same type.
        out: of the result on the mesh; None without one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and splitting(mesh):
        return jnp.einsum(equation, x, kernel, out_sharding=out)
    return _alone(equation, out, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _alone(equation: str, out: PartitionSpec | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, kernel, out_sharding=out)


def _forward(
    equation: str, out: PartitionSpec | None, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _alone(equation, out, x, kernel), (x, kernel)


def _backward(
    equation: str, out: PartitionSpec | None, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    operands, result = equation.split("->")
    of_x, of_kernel = operands.split(",")
    return (
        jnp.einsum(f"{result},{of_kernel}->{of_x}", cotangent, kernel, out_sharding=_spec(x)),
        jnp.einsum(f"{of_x},{result}->{of_kernel}", x, cotangent, out_sharding=_spec(kernel)),
    )


_alone.defvjp(_forward, _backward)


def _spec(x: jax.Array) -> PartitionSpec | None:
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.spec
