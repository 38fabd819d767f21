"""What a mixture-of-experts layer did with its tokens: sums over a sequence, for losses, metrics and the balance bias.

Leaves have the batch first, so that the driver can carry them from loop to loop like a state; a stack of layers puts
its layers second, and loops that are collected come before all.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.config.schema import Model, MoE, Place
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


def summed(
    moe: MoE,
    logits_BSE: jax.Array,
    scores_BSE: jax.Array,
    ids_BSk: jax.Array,
    dropped_B: jax.Array,
    before_BSW: jax.Array | None,
    *,
    with_logits: bool,
) -> Routing:
    """The sums of a visit. before_BSW: `experts_BSW` of the loop before."""
    chosen_BSkE = ids_BSk[..., None] == jnp.arange(moe.num_experts)
    experts_BSW = _sets(ids_BSk, moe.num_experts)
    common_BSW = experts_BSW & (jnp.zeros_like(experts_BSW) if before_BSW is None else before_BSW)
    with_softmax = moe.balance.entropy_weight > 0
    return Routing(
        load_BE=jnp.sum(chosen_BSkE, axis=(1, 2), dtype=logits_BSE.dtype),
        score_BE=jnp.sum(scores_BSE / jnp.sum(scores_BSE, axis=-1, keepdims=True), axis=1),
        softmax_BE=jnp.sum(jax.nn.softmax(logits_BSE), axis=1) if with_softmax else None,
        z_B=jnp.sum(jnp.square(jax.nn.logsumexp(logits_BSE, axis=-1)), axis=1),
        dropped_B=dropped_B,
        kept_B=jnp.sum(jax.lax.population_count(common_BSW), axis=(1, 2), dtype=logits_BSE.dtype),
        experts_BSW=experts_BSW,
        logits_BSE=logits_BSE if with_logits else None,
    )


def nothing(
    config: Model, place: Place, tokens_BS: jax.Array, dtype: jax.typing.DTypeLike, with_logits: bool
) -> Routing | None:
    """What a stack of layers has before its first loop: zeros. None where no layer has experts."""
    moe = config.feed_forward_of(place)
    if not isinstance(moe, MoE):
        return None
    B, S = tokens_BS.shape
    L, E = config.layers_of(place) - len(moe.dense_layers), moe.num_experts

    def zeros(axes: tuple[str, ...], *shape: int, dtype: jax.typing.DTypeLike = dtype) -> jax.Array:
        return lay_out(jnp.zeros((B, L, *shape), dtype), "batch", "layers", *axes)

    sums, of_token = ("routes",), ("residual", "routes")
    return Routing(
        load_BE=zeros(sums, E),
        score_BE=zeros(sums, E),
        softmax_BE=zeros(sums, E) if moe.balance.entropy_weight > 0 else None,
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
