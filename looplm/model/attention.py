"""Causal self-attention with grouped key/value heads and rotary positions."""

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import Model
from looplm.model.context import Context, KeysValues
from looplm.model.init import initializers
from looplm.model.layers import Linear
from looplm.ops.attention import attention
from looplm.ops.rope import rotary


class Attention(nnx.Module):
    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        D, N = config.dim, config.num_heads
        K, H = config.num_kv_heads or N, config.head_dim or D // N
        init = initializers(config)
        q, kv = ("batch", "sequence", "heads", "head_dim"), ("batch", "sequence", "kv_heads", "head_dim")
        self.theta = config.rope_theta
        self.query = Linear(rngs, init["linear"], "BSD,DNH->BSNH", (D, N, H), ("embed", "heads", "head_dim"), q)
        self.key = Linear(rngs, init["linear"], "BSD,DKH->BSKH", (D, K, H), ("embed", "kv_heads", "head_dim"), kv)
        self.value = Linear(rngs, init["linear"], "BSD,DKH->BSKH", (D, K, H), ("embed", "kv_heads", "head_dim"), kv)
        self.output = Linear(
            rngs, init["residual_output"], "BSNH,NHD->BSD", (N, H, D), ("heads", "head_dim", "embed"),
            ("batch", "sequence", "embed"),
        )  # fmt: skip

    def __call__(
        self, x_BSD: jax.Array, context: Context, cache: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        """Attends over x, or over the cache after x's keys and values were written into it. Returns (out, cache)."""
        q_BSNH = rotary(self.query(x_BSD), context.positions_BS, theta=self.theta)
        k_BTKH = rotary(self.key(x_BSD), context.positions_BS, theta=self.theta)
        v_BTKH = self.value(x_BSD)
        if cache is not None:
            row_B1 = jnp.arange(x_BSD.shape[0])[:, None]
            k_BTKH = cache[0].at[row_B1, context.positions_BS].set(k_BTKH.astype(cache[0].dtype))
            v_BTKH = cache[1].at[row_B1, context.positions_BS].set(v_BTKH.astype(cache[1].dtype))
            cache = (k_BTKH, v_BTKH)
        return self.output(attention(q_BSNH, k_BTKH, v_BTKH, context.mask_BST)), cache
