"""Projections of an attention that are mixtures of experts, head by head (SwitchHead, arXiv 2312.07987).

All experts are computed, and those that were not chosen are weighted with 0. These are plain products, split over
devices like those of a dense attention. What computing only the chosen ones would save: docs/decisions.md, "MoEUT".
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import MixtureAttention, Model
from looplm.model.init import Init, of_each
from looplm.model.layers import Linear, parameter
from looplm.model.router import top_k_ids
from looplm.model.routing import Routing, summed, unless_padding
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import lay_out, use
from looplm.sharding.rules import activation_spec

IN_ROUTER = ("batch", "residual", "routes", "routes")


class Choice(NamedTuple):
    """Which experts the heads (G) of a projection chose, in the layout of the residual stream."""

    weights_BSGE: jax.Array
    """The scores of the chosen experts, 0 for the others."""
    ids_BSGk: jax.Array
    scores_BSGE: jax.Array
    logits_BSGE: jax.Array


class HeadRouter(nnx.Module):
    """Scores the experts of every head for every token by a sigmoid and takes the best; float32 at least."""

    def __init__(self, dim: int, mixture: MixtureAttention, num_heads: int, init: Init, *, rngs: nnx.Rngs):
        self.count, shape = mixture.experts_per_token, (dim, num_heads, mixture.num_experts)
        self.kernel = parameter(rngs, init.matrix, shape, ("embed", "routes", "routes"), wide=True)

    def __call__(self, x_BSD: jax.Array) -> Choice:
        """Choose the experts of every head. x_BSD: in the layout of the residual stream."""
        x_BSD = at_least_fp32(x_BSD)
        logits_BSGE = jnp.einsum(
            "BSD,DGE->BSGE",
            x_BSD,
            use(self.kernel, x_BSD.dtype),
            out_sharding=activation_spec(*IN_ROUTER),
            precision="highest",  # else float32 would be bfloat16 on a TPU
        )
        scores_BSGE = jax.nn.sigmoid(logits_BSGE)
        ids_BSGk = top_k_ids(jax.lax.stop_gradient(scores_BSGE), self.count)
        chosen_BSGE = jnp.any(ids_BSGk[..., None] == jnp.arange(scores_BSGE.shape[-1]), axis=-2)
        return Choice(jnp.where(chosen_BSGE, scores_BSGE, 0), ids_BSGk, scores_BSGE, logits_BSGE)


class ValueExperts(nnx.Module):
    """sum over the experts of a head of weight * x W_e."""

    def __init__(self, config: Model, mixture: MixtureAttention, init: Init, *, rngs: nnx.Rngs):
        shape = mixture.num_experts, config.dim, config.kv_heads, config.head_size
        self.experts = Linear(
            rngs,
            of_each(init.matrix),
            "BSD,EDKH->BSEKH",
            shape,
            ("head_experts", "embed", "kv_heads", "head_dim"),
            ("batch", "sequence", "head_experts", "kv_heads", "head_dim"),
            used=share_of(mixture),
        )

    def __call__(self, x_BSD: jax.Array, choice: Choice) -> jax.Array:
        weights_BSKE = lay_out(choice.weights_BSGE, "batch", "sequence", "kv_heads", "head_experts")
        weights_BSEK1 = jnp.swapaxes(weights_BSKE, 2, 3)[..., None]
        return jnp.sum(self.experts(x_BSD) * weights_BSEK1, axis=2).astype(x_BSD.dtype)


class OutputExperts(nnx.Module):
    """sum over heads and their experts of weight * x W_e."""

    def __init__(self, config: Model, mixture: MixtureAttention, init: Init, *, rngs: nnx.Rngs):
        shape = mixture.num_experts, config.num_heads, config.head_size, config.dim
        self.experts = Linear(
            rngs,
            of_each(init.output, summed=False),
            "BSENH,ENHD->BSD",
            shape,
            ("head_experts", "heads", "head_dim", "embed"),
            ("batch", "sequence", "embed"),
            used=share_of(mixture),
        )

    def __call__(self, x_BSNH: jax.Array, choice: Choice) -> jax.Array:
        weights_BSNE = lay_out(choice.weights_BSGE, "batch", "sequence", "heads", "head_experts")
        weights_BSEN1 = jnp.swapaxes(weights_BSNE, 2, 3)[..., None]
        return self.experts((x_BSNH[:, :, None] * weights_BSEN1).astype(x_BSNH.dtype))


def share_of(mixture: MixtureAttention) -> tuple[int, int]:
    """Return (experts of a head that a token uses, all experts of a head)."""
    return mixture.experts_per_token, mixture.num_experts


def routing_of(
    choices: Sequence[Choice], counted_BS: jax.Array | None, *, with_softmax: bool, with_logits: bool
) -> Routing:
    """Sum up what the routers of all projections chose, their experts one after the other in one list."""

    def together(arrays_BSGE: Iterable[jax.Array]) -> jax.Array:
        return jnp.concatenate(tuple(arrays_BSGE), axis=2)

    def flat(x_BSGE: jax.Array) -> jax.Array:
        return x_BSGE.reshape(*x_BSGE.shape[:2], -1)

    logits_BSGE = together(choice.logits_BSGE for choice in choices)
    num_groups, num_experts = logits_BSGE.shape[2:]
    ids_BSGk = together(choice.ids_BSGk for choice in choices) + num_experts * jnp.arange(num_groups)[:, None]
    ids_BSk = unless_padding(flat(ids_BSGk), counted_BS, num_groups * num_experts)
    scores_BSGE = together(choice.scores_BSGE for choice in choices)
    none_B = jnp.sum(0 * ids_BSGk, axis=(1, 2, 3), dtype=jnp.int32)
    return summed(
        flat(logits_BSGE),
        flat(scores_BSGE),
        ids_BSk,
        none_B,
        num_groups=num_groups,
        with_softmax=with_softmax,
        with_logits=with_logits,
    )
