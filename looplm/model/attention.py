"""Self-attention with grouped key/value heads; values and outputs may be mixtures of experts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config import schema
from looplm.config.schema import DenseAttention, MixtureAttention, Model, RotaryPositions, SequenceMLP
from looplm.model.cache import KVCache, Visit
from looplm.model.context import Context
from looplm.model.convolution import biased, branch_biased
from looplm.model.feed_forward import SwiGLU
from looplm.model.head_experts import HeadRouter, OutputExperts, ValueExperts, routing_of
from looplm.model.init import Init
from looplm.model.layers import HeadsNorm, Linear, RMSNorm, UnitNorm, parameter
from looplm.model.positions import RelativePositions
from looplm.model.residual import Recalled
from looplm.model.routing import Routing
from looplm.ops.attention import Mask, attention, cached_attention, dense
from looplm.ops.rope import rotary
from looplm.sharding.collective import per_channel, use

AddEmbedding = Callable[[jax.Array, jax.Array], jax.Array]
"""Adds a value embedding: (values, the attention's input) -> values."""


class Heads(nnx.Module):
    """Queries or keys: projection, then learned bias, norm and rotation as the config has them."""

    def __init__(self, config: Model, num_heads: int, axis: str, init: Init, *, rngs: nnx.Rngs):
        H = config.head_size
        self.rope = config.rope if isinstance(config.positions, RotaryPositions) else None
        self.project = Linear(
            rngs,
            init.matrix,
            "BSD,DNH->BSNH",
            (config.dim, num_heads, H),
            ("embed", axis, "head_dim"),
            ("batch", "sequence", axis, "head_dim"),
        )
        self.bias = (
            parameter(rngs, zeros, (num_heads, H), (axis, "head_dim"), elementwise=True) if config.qk_bias else None
        )
        self.norm = head_norm(config, num_heads, H, axis, rngs=rngs) if config.qk_norm else None

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array) -> jax.Array:
        h_BSNH = self.content(x_BSD)
        return h_BSNH if self.rope is None else rotary(h_BSNH, positions_BS, self.rope)

    def content(self, x_BSD: jax.Array) -> jax.Array:
        """Return them without a position."""
        h_BSNH = self.project(x_BSD)
        if self.bias is not None:
            h_BSNH = per_channel(jnp.add, [use(self.bias, h_BSNH.dtype)], h_BSNH)
        if self.norm is not None:
            h_BSNH = self.norm(h_BSNH)
        return h_BSNH


def head_norm(config: Model, num_heads: int, head_dim: int, axis: str, *, rngs: nnx.Rngs) -> nnx.Module:
    """Make the norm of queries or keys."""
    if not config.qk_norm_scale:
        return UnitNorm()
    if config.qk_norm_over == "all_heads":
        return HeadsNorm(rngs, (num_heads, head_dim), config.norm_eps, axis, loops=config.norm_loops)
    return RMSNorm(rngs, head_dim, config.norm_eps, axis="head_dim", loops=config.norm_loops)


class Attention(nnx.Module):
    """Self-attention of one layer, from what it reads to what it adds to the residual stream."""

    def __init__(self, config: Model, init: Init, *, rngs: nnx.Rngs):
        D, N = config.dim, config.num_heads
        K, H = config.kv_heads, config.head_size
        self.query = Heads(config, N, "heads", init, rngs=rngs)
        self.key = Heads(config, K, "kv_heads", init, rngs=rngs)
        self.relative = (
            RelativePositions(config, init, config.positions, rngs=rngs)
            if isinstance(config.positions, schema.RelativePositions)
            else None
        )
        self.mixture = mixture = config.attention if isinstance(config.attention, MixtureAttention) else None
        choosing = mixture if mixture and mixture.routed_values else None
        self.value_router = HeadRouter(config.dim, choosing, K, init, rngs=rngs) if choosing else None
        self.output_router = HeadRouter(config.dim, mixture, N, init, rngs=rngs) if mixture else None
        self.value: nnx.Module = (
            ValueExperts(config, choosing, init, rngs=rngs)
            if choosing
            else Unrouted(
                rngs,
                init.matrix,
                "BSD,DKH->BSKH",
                (D, K, H),
                ("embed", "kv_heads", "head_dim"),
                ("batch", "sequence", "kv_heads", "head_dim"),
            )
        )
        dense = config.attention if isinstance(config.attention, DenseAttention) else None
        with_bias, gated = dense is not None and dense.bias, dense is not None and dense.output_gate
        self.value_bias = (
            parameter(rngs, zeros, (K, H), ("kv_heads", "head_dim"), elementwise=True) if with_bias else None
        )
        self.output_bias = parameter(rngs, zeros, (D,), ("embed",), elementwise=True) if with_bias else None
        self.gate = (
            Linear(
                rngs,
                init.matrix,
                "BSD,DNH->BSNH",
                (D, N, H),
                ("embed", "heads", "head_dim"),
                ("batch", "sequence", "heads", "head_dim"),
            )
            if gated
            else None
        )
        self.output: nnx.Module = (
            OutputExperts(config, mixture, init, rngs=rngs)
            if mixture
            else Unrouted(
                rngs,
                init.output,
                "BSNH,NHD->BSD",
                (N, H, D),
                ("heads", "head_dim", "embed"),
                ("batch", "sequence", "embed"),
            )
        )

    def __call__(
        self,
        x_BSD: jax.Array,
        read_BSD: jax.Array,
        routed_BSD: jax.Array,
        context: Context,
        cache: KVCache | None,
        visit: Visit | None,
        add_embedding: AddEmbedding | None = None,
        recalled: Recalled | None = None,
    ) -> tuple[jax.Array, KVCache | None, Routing | None]:
        """Attend over x, over the cache after x's keys and values were written into it, or over a memory and x.

        Args:
            x_BSD: what values are made of.
            read_BSD: what queries and keys are made of: x, or its norm where values read it without one (`peri`).
            routed_BSD: what routers read: `read_BSD` in the layout of the residual stream.
            visit: where in the cache this visit reads and writes; None without a cache.
            add_embedding: adds a value embedding to the values.
            recalled: what keys and values are also made of, from before the sequence; it stands right before it.

        Returns (out (B, S, D), cache, what the routers chose; None where there are none, or nobody asks).
        """
        value_choice = self.value_router(routed_BSD) if self.value_router else None
        output_choice = self.output_router(routed_BSD) if self.output_router else None
        q_BSNH = self.query(read_BSD, context.positions_BS)
        keys_of_BTD, values_of_BTD, positions_BT = read_BSD, x_BSD, context.positions_BS
        if recalled is not None:
            keys_of_BTD = jnp.concatenate([recalled.keys_of_BMD, read_BSD], axis=1)
            values_of_BTD = jnp.concatenate([recalled.values_of_BMD, x_BSD], axis=1)
            M = recalled.keys_of_BMD.shape[1]
            positions_BT = jnp.concatenate([positions_BT[:, :1] + jnp.arange(-M, 0), positions_BT], axis=1)
        k_BTKH = self.key(keys_of_BTD, positions_BT)
        v_BTKH = biased(self.value(values_of_BTD, value_choice), self.value_bias)
        if add_embedding is not None:
            v_BTKH = add_embedding(v_BTKH, x_BSD)
        if cache is not None:
            assert visit is not None, "a cache comes with a visit"
            k_BKTH, v_BKTH, cache = cache.write(k_BTKH, v_BTKH, visit, context.positions_BS, context.left_BS)
        bias_BNST = None
        if self.relative is not None:
            q_BSNH, bias_BNST = self.relative(q_BSNH, context.mask, context.relative_vectors)
        if cache is not None:
            out_BSNH = cached_attention(q_BSNH, k_BKTH, v_BKTH, context.mask, bias_BNST)
        else:
            out_BSNH = attention(q_BSNH, k_BTKH, v_BTKH, context.mask, bias_BNST)
        if self.gate is not None:
            out_BSNH = out_BSNH * jax.nn.sigmoid(self.gate(read_BSD))
        routing = None
        if output_choice is not None and self.mixture and context.reporting.routing:
            choices = [choice for choice in (value_choice, output_choice) if choice is not None]
            routing = routing_of(
                choices,
                context.counted_BS,
                with_softmax=self.mixture.entropy_weight > 0,
                with_logits=context.reporting.router_logits,
            )
        return branch_biased(self.output(out_BSNH, output_choice), self.output_bias), cache, routing

    def by_content(self, read_BSD: jax.Array, recalled: Recalled, mask: Mask) -> jax.Array:
        """Return what the heads read of other places by what is there alone, (B, S, N, H). Values need no router."""
        v_BTKH = biased(self.value(recalled.values_of_BMD, None), self.value_bias)
        return dense.attention(self.query.content(read_BSD), self.key.content(recalled.keys_of_BMD), v_BTKH, mask)


class Unrouted(Linear):
    """A projection without experts: there is nothing to choose."""

    def __call__(self, x: jax.Array, choice: None = None) -> jax.Array:
        return super().__call__(x)


class OverPlaces(SwiGLU):
    """A SwiGLU over the places of a sequence, which are its channels; called as attention is."""

    def __init__(self, kind: SequenceMLP, init: Init, *, rngs: nnx.Rngs):
        super().__init__(kind.length, kind.width, init, rngs=rngs)

    def __call__(  # type: ignore[override]
        self, x_BSD: jax.Array, read_BSD: jax.Array, routed_BSD: jax.Array, context: Context, *_: None
    ) -> tuple[jax.Array, None, None]:
        return jnp.swapaxes(super().__call__(jnp.swapaxes(read_BSD, 1, 2)), 1, 2), None, None


def build_attention(config: Model, init: Init, *, rngs: nnx.Rngs) -> nnx.Module:
    """Make what the config names to carry numbers from place to place."""
    if isinstance(config.attention, SequenceMLP):
        return OverPlaces(config.attention, init, rngs=rngs)
    return Attention(config, init, rngs=rngs)
