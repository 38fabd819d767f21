"""Attention by XLA, through `jax.nn`, with all scores in memory; the reference where float64 is asked for."""

import jax
import jax.numpy as jnp

from looplm.ops.attention import reference
from looplm.ops.attention.mask import Mask
from looplm.ops.scopes import needed


def attention(
    q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, bias_BNST: jax.Array | None = None
) -> jax.Array:
    """See `api.attention`. A query that sees nothing gives finite numbers without meaning."""
    num_queries, num_keys = q_BSNH.shape[1], k_BTKH.shape[1]
    with needed(mask.mean_keys(num_queries) / num_keys):
        if q_BSNH.dtype == jnp.float64:
            # jax.nn takes the softmax in float32 whatever the inputs are.
            return reference.attention(q_BSNH, k_BTKH, v_BTKH, mask, bias_BNST)
        seen_B1ST = mask.dense(num_queries)[:, None]
        return jax.nn.dot_product_attention(q_BSNH, k_BTKH, v_BTKH, bias_BNST, seen_B1ST)
