"""The product of the head, whose gradient copies hidden states where XLA's own would copy logits."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from looplm.sharding.rules import activation_spec


@jax.custom_vjp
def head_product(hidden_BCD: jax.Array, head_VD: jax.Array) -> jax.Array:
    """hidden head^T, (B, C, V), both of one type."""
    spec = activation_spec("batch", "sequence", "vocab")
    return jnp.einsum("BCD,VD->BCV", hidden_BCD, head_VD, out_sharding=spec)


def _forward(hidden_BCD: jax.Array, head_VD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return head_product(hidden_BCD, head_VD), (hidden_BCD, head_VD)


def _backward(saved: tuple[jax.Array, jax.Array], cotangent_BCV: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden_BCD, head_VD = saved
    of_hidden, of_head = None, None
    if not jax.sharding.get_abstract_mesh().empty:
        of_hidden, spec = jax.typeof(hidden_BCD).sharding.spec, jax.typeof(head_VD).sharding.spec
        of_head = PartitionSpec(*reversed(spec.partitions), unreduced=spec.reduced)
    of_hidden_BCD = jnp.einsum("BCV,VD->BCD", cotangent_BCV, head_VD, out_sharding=of_hidden)
    # A product that sums over rows makes XLA on CPUs copy its first operand turned. Written the other way round that
    # is the large one; without the barrier XLA writes it so.
    of_head_DV = jnp.einsum("BCD,BCV->DV", hidden_BCD, cotangent_BCV, out_sharding=of_head)
    return of_hidden_BCD, jax.lax.optimization_barrier(of_head_DV).T


head_product.defvjp(_forward, _backward)
