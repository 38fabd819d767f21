"""Attention of a few queries over a cache, whose keys and values lie head by head: nothing of it is transposed."""

import jax
import jax.numpy as jnp

from looplm.ops.attention.api import attention
from looplm.ops.attention.choice import choose
from looplm.ops.attention.mask import Asked, Mask
from looplm.ops.scopes import needed

UNSEEN = -1e30
"""The score of a key that is not seen: finite, so that a query that sees nothing gives numbers."""


def cached_attention(
    q_BSNH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, mask: Mask, bias_BNST: jax.Array | None = None
) -> jax.Array:
    """See `attention`, which also does the work where there is something better for so many queries."""
    (B, S, N, H), K = q_BSNH.shape, k_BKTH.shape[1]
    if choose(mask, Asked(S, q_BSNH.dtype, H, bias_BNST is not None)).backend != "dense":
        return attention(q_BSNH, jnp.swapaxes(k_BKTH, 1, 2), jnp.swapaxes(v_BKTH, 1, 2), mask, bias_BNST)
    with needed(mask.mean_keys(S) / mask.num_keys):
        q_BKGSH = q_BSNH.reshape(B, S, K, N // K, H).transpose(0, 2, 3, 1, 4)
        wide = jnp.promote_types(q_BSNH.dtype, jnp.float32)
        # With the keys as the first operand a CPU reads them as they lie; as the second it turns them at every visit.
        scores_BKTGS = jnp.einsum("BKTH,BKGSH->BKTGS", k_BKTH, q_BKGSH, preferred_element_type=wide) / H**0.5
        scores_BKGST = jnp.moveaxis(scores_BKTGS, 2, -1)
        if bias_BNST is not None:
            scores_BKGST += bias_BNST.reshape(-1, K, N // K, *bias_BNST.shape[2:])
        p_BKGST = jax.nn.softmax(jnp.where(mask.dense(S)[:, None, None], scores_BKGST, UNSEEN), axis=-1)
        out_BKGSH = jnp.einsum("BKGST,BKTH->BKGSH", p_BKGST.astype(v_BKTH.dtype), v_BKTH)
        return out_BKGSH.transpose(0, 3, 1, 2, 4).reshape(B, S, N, H)
