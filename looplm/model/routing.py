"""What the routers of a layer did with its tokens: sums over a sequence, for losses, metrics and the balance bias.

Experts of all heads of an attention count as one list, those of a group (a head of a projection) one after the other.

Leaves have the batch first; a stack of layers puts its layers second, and visits come before all.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.config.schema import MixtureAttention, Model
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
    experts_BSW: jax.Array
    """The set of every token's experts: bit e % 32 of word e // 32; uint32. Empty for padding."""
    logits_BSE: jax.Array | None = None
    """The router's logits; None unless asked for."""


def summed(
    logits_BSE: jax.Array,
    scores_BSE: jax.Array,
    ids_BSk: jax.Array,
    dropped_B: jax.Array,
    *,
    num_groups: int = 1,
    with_softmax: bool,
    with_logits: bool,
) -> Routing:
    """The sums of a visit.

    ids_BSk: see `unless_padding`; what chooses no expert is not counted.
    num_groups: of experts of the same number, of which each is normalised for itself.
    """
    num_experts = logits_BSE.shape[-1]
    chosen_BSkE = ids_BSk[..., None] == jnp.arange(num_experts)

    def of_groups(x_BSE: jax.Array) -> jax.Array:
        return x_BSE.reshape(*x_BSE.shape[:2], num_groups, -1)

    counted_BS11 = ids_BSk[..., :1, None] < num_experts

    def all_experts(x_BSGE: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counted_BS11, x_BSGE, 0), axis=1).reshape(x_BSGE.shape[0], -1)

    logits_BSGE, scores_BSGE = of_groups(logits_BSE), of_groups(scores_BSE)
    return Routing(
        load_BE=jnp.sum(chosen_BSkE, axis=(1, 2), dtype=logits_BSE.dtype),
        score_BE=all_experts(scores_BSGE / jnp.sum(scores_BSGE, axis=-1, keepdims=True)),
        softmax_BE=all_experts(jax.nn.softmax(logits_BSGE)) if with_softmax else None,
        z_B=jnp.sum(
            jnp.where(counted_BS11[..., 0], jnp.square(jax.nn.logsumexp(logits_BSGE, axis=-1)), 0), axis=(1, 2)
        ),
        dropped_B=dropped_B,
        experts_BSW=_sets(ids_BSk, num_experts),
        logits_BSE=logits_BSE if with_logits else None,
    )


def unless_padding(ids_BSk: jax.Array, counted_BS: jax.Array | None, num_experts: int) -> jax.Array:
    """The ids of the chosen experts, in the layout of the residual stream; `num_experts`, which is none of them, for
    padding. counted_BS: see `Context`."""
    if counted_BS is None:
        return ids_BSk
    return jnp.where(lay_out(counted_BS, "batch", "residual")[..., None], ids_BSk, num_experts)


def num_head_groups(config: Model, mixture: MixtureAttention) -> tuple[int, int]:
    """How many groups of experts the values and the outputs of an attention choose from: a group for each head."""
    values = config.kv_heads if mixture.routed_values else 0
    return values, config.num_heads


def kept_choices(experts_TBLSW: jax.Array) -> jax.Array:
    """Counts the choices of every visit that the visit before had made for the same token: (T, B, L) int32, 0 for the
    first."""
    common_TBLSW = experts_TBLSW[1:] & experts_TBLSW[:-1]
    kept_TBL = jnp.sum(jax.lax.population_count(common_TBLSW), axis=(3, 4), dtype=jnp.int32)
    return jnp.pad(kept_TBL, ((1, 0), (0, 0), (0, 0)))


def _sets(ids_BSk: jax.Array, num_experts: int) -> jax.Array:
    words_W = jnp.arange(-(-num_experts // WORD))
    bit_BSk1 = jnp.left_shift(jnp.uint32(1), (ids_BSk % WORD).astype(jnp.uint32))[..., None]
    in_word_BSkW = ((ids_BSk // WORD)[..., None] == words_W) & (ids_BSk < num_experts)[..., None]
    return jnp.sum(jnp.where(in_word_BSkW, bit_BSk1, 0), axis=2, dtype=jnp.uint32)
