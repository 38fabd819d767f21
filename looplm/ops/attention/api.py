"""The attention that the model calls: XLA, through `jax.nn`; the reference where float64 is asked for."""

import jax
import jax.numpy as jnp

from looplm.ops.attention import reference


def attention(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask_BST: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v with N / K query heads per key/value head; softmax in float32 at least.

    Args:
        mask_BST: True where query s sees key t. A query that sees nothing gives finite numbers without meaning.

    Returns:
        (B, S, N, H).
    """
    if q_BSNH.dtype == jnp.float64:
        # jax.nn takes the softmax in float32 whatever the inputs are.
        return reference.attention(q_BSNH, k_BTKH, v_BTKH, mask_BST)
    return jax.nn.dot_product_attention(q_BSNH, k_BTKH, v_BTKH, mask=mask_BST[:, None])
