"""What the routers of a layer chose: sums over a sequence, for losses, metrics and the balance bias.

The experts of all heads of an attention count as one list, group by group (a group is a head of a projection).

Leaves have the batch first. A stack puts its layers second, and visits come before both.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.config.schema import MixtureAttention, Model
from looplm.sharding.collective import lay_out

WORD = 32
"""How many experts a word of a set has room for."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """The sums of one visit of a layer."""

    load_BE: jax.Array
    """How many tokens chose every expert, choices that were dropped included."""
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
    """Sum up what the routers chose in a visit.

    ids_BSk: ids of the chosen experts; tokens that chose none (see `unless_padding`) are not counted.
    num_groups: how many groups of equally many experts there are; each is normalised by itself.
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
    """Replace what padding chose by `num_experts`, which is no expert; in the layout of the residual stream.

    counted_BS: see `Context`.
    """
    if counted_BS is None:
        return ids_BSk
    return jnp.where(lay_out(counted_BS, "batch", "residual")[..., None], ids_BSk, num_experts)


def num_head_groups(config: Model, mixture: MixtureAttention) -> tuple[int, int]:
    """Count the groups of experts of the values and of the outputs of an attention: one for each head, or none."""
    values = config.kv_heads if mixture.routed_values else 0
    return values, config.num_heads


def kept_choices(experts_TBLSW: jax.Array) -> jax.Array:
    """Count the choices of every visit that the visit before had also made for the same token: (T, B, L) int32, 0 for
    the first."""
    common_TBLSW = experts_TBLSW[1:] & experts_TBLSW[:-1]
    kept_TBL = jnp.sum(jax.lax.population_count(common_TBLSW), axis=(3, 4), dtype=jnp.int32)
    return jnp.pad(kept_TBL, ((1, 0), (0, 0), (0, 0)))


def _sets(ids_BSk: jax.Array, num_experts: int) -> jax.Array:
    words_W = jnp.arange(-(-num_experts // WORD))
    bit_BSk1 = jnp.left_shift(jnp.uint32(1), (ids_BSk % WORD).astype(jnp.uint32))[..., None]
    in_word_BSkW = ((ids_BSk // WORD)[..., None] == words_W) & (ids_BSk < num_experts)[..., None]
    return jnp.sum(jnp.where(in_word_BSkW, bit_BSk1, 0), axis=2, dtype=jnp.uint32)
