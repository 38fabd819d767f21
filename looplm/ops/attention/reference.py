"""Attention by its definition: what other backends are tested against, and the one that is exact in float64."""

import jax
import jax.numpy as jnp

from looplm.ops.attention.mask import Mask
from looplm.ops.precision import at_least_fp32


def attention(
    q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, bias_BNST: jax.Array | None = None
) -> jax.Array:
    """See `api.attention`. Holds all (B, N, S, T) weights."""
    batch, length, num_heads, head_dim = q_BSNH.shape
    num_kv_heads, num_keys = k_BTKH.shape[2], k_BTKH.shape[1]
    q_BSKGH = q_BSNH.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores_BKGST = at_least_fp32(jnp.einsum("BSKGH,BTKH->BKGST", q_BSKGH, k_BTKH)) * head_dim**-0.5
    if bias_BNST is not None:
        scores_BKGST += bias_BNST.reshape(-1, *scores_BKGST.shape[1:3], length, num_keys)
    scores_BKGST = jnp.where(mask.dense(length)[:, None, None], scores_BKGST, jnp.finfo(scores_BKGST.dtype).min)
    weights_BKGST = jax.nn.softmax(scores_BKGST, axis=-1).astype(v_BTKH.dtype)
    return jnp.einsum("BKGST,BTKH->BSKGH", weights_BKGST, v_BTKH).reshape(q_BSNH.shape)
