"""What the routers of a layer did with its tokens: sums over a sequence, for losses, metrics and the balance bias.

Experts of all heads of an attention count as one list, those of a group (a head of a projection) one after the other.

Leaves have the batch first, so that the driver can carry them from loop to loop like a state; a stack of layers puts
its layers second, and loops that are collected come before all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.config.schema import MixtureAttention, Model, MoE, Place
from looplm.sharding.collective import lay_out

WORD = 32
"""Experts a word of a set."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """Of one visit of a layer."""

    load_BE: jax.Array
    """How many tokens chose an expert, those that were dropped there included."""
    score_BE: jax.Array
    """Sum over tokens of the scores divided by their sum over experts."""
    softmax_BE: jax.Array | None
    """Sum over tokens of softmax(logits); None unless the entropy is asked for."""
    z_B: jax.Array
    """Sum over tokens of the squared log-normaliser of the logits."""
    dropped_B: jax.Array
    """Choices that the capacity left no place for."""
    kept_B: jax.Array
    """Choices that the loop before had made for the same token."""
    experts_BSW: jax.Array
    """The set of every token's experts: bit e % 32 of word e // 32; uint32."""
    logits_BSE: jax.Array | None = None
    """The router's logits; None unless asked for."""


class Routed(NamedTuple):
    """Of one visit of a layer, by the branch whose experts they are; None where it has none."""

    feed_forward: Routing | None = None
    attention: Routing | None = None


def summed(
    logits_BSE: jax.Array,
    scores_BSE: jax.Array,
    ids_BSk: jax.Array,
    dropped_B: jax.Array,
    before_BSW: jax.Array | None,
    *,
    num_groups: int = 1,
    with_softmax: bool,
    with_logits: bool,
) -> Routing:
    """The sums of a visit.

    before_BSW: `experts_BSW` of the loop before.
    num_groups: of experts of the same number, of which each is normalised for itself.
    """
    num_experts = logits_BSE.shape[-1]
    chosen_BSkE = ids_BSk[..., None] == jnp.arange(num_experts)
    experts_BSW = _sets(ids_BSk, num_experts)

    def of_groups(x_BSE: jax.Array) -> jax.Array:
        return x_BSE.reshape(*x_BSE.shape[:2], num_groups, -1)

    def all_experts(x_BSGE: jax.Array) -> jax.Array:
        return jnp.sum(x_BSGE, axis=1).reshape(x_BSGE.shape[0], -1)

    logits_BSGE, scores_BSGE = of_groups(logits_BSE), of_groups(scores_BSE)
    common_BSW = experts_BSW & (jnp.zeros_like(experts_BSW) if before_BSW is None else before_BSW)
    return Routing(
        load_BE=jnp.sum(chosen_BSkE, axis=(1, 2), dtype=logits_BSE.dtype),
        score_BE=all_experts(scores_BSGE / jnp.sum(scores_BSGE, axis=-1, keepdims=True)),
        softmax_BE=all_experts(jax.nn.softmax(logits_BSGE)) if with_softmax else None,
        z_B=jnp.sum(jnp.square(jax.nn.logsumexp(logits_BSGE, axis=-1)), axis=(1, 2)),
        dropped_B=dropped_B,
        kept_B=jnp.sum(jax.lax.population_count(common_BSW), axis=(1, 2), dtype=logits_BSE.dtype),
        experts_BSW=experts_BSW,
        logits_BSE=logits_BSE if with_logits else None,
    )


def num_head_groups(config: Model, mixture: MixtureAttention) -> tuple[int, int]:
    """How many groups of experts the values and the outputs of an attention choose from: a group for each head."""
    values = (config.num_kv_heads or config.num_heads) if mixture.routed_values else 0
    return values, config.num_heads


def nothing(
    config: Model, place: Place, tokens_BS: jax.Array, dtype: jax.typing.DTypeLike, with_logits: bool
) -> Routed:
    """What a stack of layers has before its first loop: zeros."""
    moe, mixture, L = config.feed_forward_of(place), config.attention, config.layers_of(place)
    feed_forward = attention = None
    if isinstance(moe, MoE):
        entropy, own = moe.balance.entropy_weight > 0, L - len(moe.dense_layers)
        feed_forward = _zeros(tokens_BS, own, moe.num_experts, dtype, entropy, with_logits)
    if isinstance(mixture, MixtureAttention):
        entropy, E = mixture.entropy_weight > 0, sum(num_head_groups(config, mixture)) * mixture.num_experts
        attention = _zeros(tokens_BS, L, E, dtype, entropy, with_logits)
    return Routed(feed_forward, attention)


def _zeros(
    tokens_BS: jax.Array, L: int, E: int, dtype: jax.typing.DTypeLike, with_softmax: bool, with_logits: bool
) -> Routing:
    B, S = tokens_BS.shape

    def zeros(axes: tuple[str, ...], *shape: int, dtype: jax.typing.DTypeLike = dtype) -> jax.Array:
        return lay_out(jnp.zeros((B, L, *shape), dtype), "batch", "layers", *axes)

    sums, of_token = ("routes",), ("residual", "routes")
    return Routing(
        load_BE=zeros(sums, E),
        score_BE=zeros(sums, E),
        softmax_BE=zeros(sums, E) if with_softmax else None,
        z_B=zeros(()),
        dropped_B=zeros((), dtype=jnp.int32),
        kept_B=zeros(()),
        experts_BSW=zeros(of_token, S, -(-E // WORD), dtype=jnp.uint32),
        logits_BSE=zeros(of_token, S, E) if with_logits else None,
    )


def _sets(ids_BSk: jax.Array, num_experts: int) -> jax.Array:
    words_W = jnp.arange(-(-num_experts // WORD))
    bit_BSk1 = jnp.left_shift(jnp.uint32(1), (ids_BSk % WORD).astype(jnp.uint32))[..., None]
    in_word_BSkW = (ids_BSk // WORD)[..., None] == words_W
    return jnp.sum(jnp.where(in_word_BSkW, bit_BSk1, 0), axis=2, dtype=jnp.uint32)
