"""The attention that the model calls: XLA, through `jax.nn`; the reference where float64 is asked for."""

import jax
import jax.numpy as jnp

from looplm.ops.attention import reference
from looplm.ops.attention.mask import Mask
from looplm.ops.scopes import needed


def attention(
    q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, bias_BNST: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(H) + bias) v with N / K query heads per key/value head; softmax in float32 at least.

    Args:
        mask: whom a query sees. One that sees nothing gives finite numbers without meaning.
        bias_BNST: added to the scaled scores.

    Returns:
        (B, S, N, H).
    """
    num_queries, num_keys = q_BSNH.shape[1], k_BTKH.shape[1]
    with needed(mask.mean_keys(num_queries) / num_keys):
        if q_BSNH.dtype == jnp.float64:
            # jax.nn takes the softmax in float32 whatever the inputs are.
            return reference.attention(q_BSNH, k_BTKH, v_BTKH, mask, bias_BNST)
        seen_B1ST = mask.dense(num_queries)[:, None]
        return jax.nn.dot_product_attention(q_BSNH, k_BTKH, v_BTKH, bias_BNST, seen_B1ST)
