"""Self-attention with grouped key/value heads and rotary positions; values and outputs may be mixtures of experts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import MixtureAttention, Model
from looplm.model.context import Context, KeysValues
from looplm.model.head_experts import Choice, HeadRouter, OutputExperts, ValueExperts, routing_of
from looplm.model.init import initializers
from looplm.model.layers import HeadsNorm, Linear, RMSNorm, UnitNorm, parameter
from looplm.model.routing import Routing
from looplm.ops.attention import attention
from looplm.ops.rope import rotary
from looplm.sharding.collective import lay_out, per_channel, use

Mix = Callable[[jax.Array, jax.Array], jax.Array]
"""(values, the attention's input) -> values."""


class Heads(nnx.Module):
    """Queries or keys: projection, then learned bias, norm and rotation as the config has them."""

    def __init__(self, config: Model, num_heads: int, axis: str, *, rngs: nnx.Rngs):
        init, H = initializers(config), config.head_dim or config.dim // config.num_heads
        self.rope = config.rope
        self.project = Linear(
            rngs, init["linear"], "BSD,DNH->BSNH", (config.dim, num_heads, H), ("embed", axis, "head_dim"),
            ("batch", "sequence", axis, "head_dim"),
        )  # fmt: skip
        self.bias = (
            parameter(rngs, init["attention_bias"], (num_heads, H), (axis, "head_dim"), elementwise=True)
            if config.qk_bias
            else None
        )
        self.norm = head_norm(config, num_heads, H, axis, rngs=rngs) if config.qk_norm else None

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array) -> jax.Array:
        h_BSNH = self.project(x_BSD)
        if self.bias is not None:
            h_BSNH = per_channel(jnp.add, [use(self.bias, h_BSNH.dtype)], h_BSNH)
        if self.norm is not None:
            h_BSNH = self.norm(h_BSNH)
        return rotary(h_BSNH, positions_BS, self.rope)


def head_norm(config: Model, num_heads: int, head_dim: int, axis: str, *, rngs: nnx.Rngs) -> nnx.Module:
    if not config.qk_norm_scale:
        return UnitNorm()
    if config.qk_norm_over == "all_heads":
        return HeadsNorm(rngs, initializers(config)["norm"], (num_heads, head_dim), config.norm_eps, axis)
    return RMSNorm(rngs, initializers(config)["norm"], head_dim, config.norm_eps, axis="head_dim")


class Attention(nnx.Module):
    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        D, N = config.dim, config.num_heads
        K, H = config.num_kv_heads or N, config.head_dim or D // N
        init = initializers(config)
        self.query = Heads(config, N, "heads", rngs=rngs)
        self.key = Heads(config, K, "kv_heads", rngs=rngs)
        self.mixture = mixture = config.attention if isinstance(config.attention, MixtureAttention) else None
        choosing = mixture if mixture and mixture.routed_values else None
        self.value_router = HeadRouter(config, choosing, K, rngs=rngs) if choosing else None
        self.output_router = HeadRouter(config, mixture, N, rngs=rngs) if mixture else None
        self.value: nnx.Module = (
            ValueExperts(config, choosing, K, H, rngs=rngs)
            if choosing
            else Linear(
                rngs, init["linear"], "BSD,DKH->BSKH", (D, K, H), ("embed", "kv_heads", "head_dim"),
                ("batch", "sequence", "kv_heads", "head_dim"),
            )
        )  # fmt: skip
        self.output: nnx.Module = (
            OutputExperts(config, mixture, H, rngs=rngs)
            if mixture
            else Linear(
                rngs, init["residual_output"], "BSNH,NHD->BSD", (N, H, D), ("heads", "head_dim", "embed"),
                ("batch", "sequence", "embed"),
            )
        )  # fmt: skip

    def __call__(
        self,
        x_BSD: jax.Array,
        read_BSD: jax.Array,
        routed_BSD: jax.Array,
        context: Context,
        cache: KeysValues | None,
        before_BSW: jax.Array | None = None,
        mix: Mix | None = None,
    ) -> tuple[jax.Array, KeysValues | None, Routing | None]:
        """Attends over x, or over the cache after x's keys and values were written into it. Returns (out, cache, what
        the routers did, if there are some and the context asks for it).

        read_BSD: what queries and keys are made of, x but for the norm.
        routed_BSD: what routers read: the same in the layout of the residual stream.
        before_BSW: sets of experts of the loop before.
        mix: what else goes into the values.
        """
        value_choice = self.value_router(routed_BSD) if self.value_router else None
        output_choice = self.output_router(routed_BSD) if self.output_router else None
        q_BSNH = self.query(read_BSD, context.positions_BS)
        k_BTKH = self.key(read_BSD, context.positions_BS)
        v_BTKH = self.value(x_BSD, *_given(value_choice))
        if mix is not None:
            v_BTKH = mix(v_BTKH, x_BSD)
        if cache is not None:
            row_B1 = jnp.arange(x_BSD.shape[0])[:, None]
            k_BTKH = cache[0].at[row_B1, context.positions_BS].set(k_BTKH.astype(cache[0].dtype))
            v_BTKH = cache[1].at[row_B1, context.positions_BS].set(v_BTKH.astype(cache[1].dtype))
            cache = (k_BTKH, v_BTKH)
        # Where the sequence is split over devices, every query needs the keys and values of all of it.
        k_BTKH, v_BTKH = (lay_out(x, "batch", "all_keys", "kv_heads", "head_dim") for x in (k_BTKH, v_BTKH))
        out_BSNH = attention(q_BSNH, k_BTKH, v_BTKH, context.mask_BST)
        routing = None
        if self.mixture and context.with_routing:
            routing = routing_of(
                [*_given(value_choice), *_given(output_choice)], before_BSW,
                with_softmax=self.mixture.entropy_weight > 0, with_logits=context.with_router_logits,
            )  # fmt: skip
        return self.output(out_BSNH, *_given(output_choice)), cache, routing


def _given(choice: Choice | None) -> tuple[Choice, ...]:
    """None for a projection without experts, which takes none."""
    return () if choice is None else (choice,)
