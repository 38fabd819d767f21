"""The losses that routers add to the objective, and sums of their choices to log, over a (micro-)batch.

    auxiliary   E sum_e f_e P_e     f: choices of expert e a token, P: mean normalised score (arXiv 2101.03961)
    entropy     -H(P')              P': mean of softmax(logits) over a sequence and all loops (arXiv 2405.16039)
    z           mean of logsumexp(logits)^2                                              (arXiv 2202.08906)

Each is a mean over the visits of a stack (its layers in all loops; the entropy is summed over layers). A sequence
counts as often as it has scored tokens, so that the weights stand beside a mean loss per token. Padding is no token.
"""

import jax
import jax.numpy as jnp
import numpy as np

from looplm.config.schema import MixtureAttention, Model, MoE, Place
from looplm.metrics.step import Routers, RouterSums
from looplm.model.output import Output
from looplm.model.routing import Routing, kept_choices, num_head_groups


def router_loss(model: Model, output: Output, scored_B: jax.Array) -> jax.Array:
    """Return the routers' losses, to be added to the objective's sum: (), float32.

    scored_B: how many tokens of every sequence are scored.
    """
    total = jnp.zeros((), jnp.float32)
    for place, report in output.reports.items():
        routing, heads = report.experts, report.heads
        if heads is not None:
            weights_E, choices = _heads(model)
            total += _entropy(weights_E, heads, choices, _ran(output, place, heads), scored_B)
        if routing is None:
            continue
        moe = model.feed_forward_of(place)
        assert isinstance(moe, MoE)
        ran_TB = _ran(output, place, routing)
        total += _auxiliary(moe, routing, ran_TB, scored_B)
        total += _entropy(moe.balance.entropy_weight, routing, moe.experts_per_token, ran_TB, scored_B)
        if weight := moe.balance.z_loss_weight:
            z_TB = jnp.mean(routing.z_B, axis=2) / jnp.maximum(_tokens_TB(routing, moe.experts_per_token), 1)
            total += weight * jnp.sum(_mean(z_TB, ran_TB) * scored_B)
    return total


def router_sums(output: Output) -> Routers:
    """Sum up what the routers chose."""
    return Routers(
        {
            place: _sums(output, place, report.experts)
            for place, report in output.reports.items()
            if report.experts is not None
        },
        {
            place: _sums(output, place, report.heads)
            for place, report in output.reports.items()
            if report.heads is not None
        },
    )


def _sums(output: Output, place: Place, routing: Routing) -> RouterSums:
    """Sum up what the routers of a stack chose."""
    ran_TB1 = _ran(output, place, routing)[:, :, None]
    return RouterSums(
        jnp.sum(_load_TBLE(output, place, routing), axis=1),
        jnp.sum(jnp.where(ran_TB1, kept_choices(routing.experts_BSW), 0), axis=(1, 2)),
        jnp.sum(jnp.where(ran_TB1, routing.dropped_B, 0)),
    )


def loads_by_row(model: Model, output: Output) -> dict[Place, jax.Array]:
    """Count the choices of every expert by the row (W) of the router's tables that was used, (L, W, E) int32: the
    loop's number, or the last row beyond them."""
    loads = dict[Place, jax.Array]()
    for place, report in output.reports.items():
        moe = model.feed_forward_of(place)
        if report.experts is None or not isinstance(moe, MoE):
            continue
        num_rows, load_TBLE = moe.bias_rows, _load_TBLE(output, place, report.experts)
        numbers_TB = output.depth.numbers_RB if place == "block" else jnp.zeros((1, 1), jnp.int32)
        rows_TB = jnp.minimum(numbers_TB, num_rows - 1)
        by_row = [
            jnp.sum(jnp.where((rows_TB == row)[:, :, None, None], load_TBLE, 0), axis=(0, 1)) for row in range(num_rows)
        ]
        loads[place] = jnp.stack(by_row, axis=1)
    return loads


def _load_TBLE(output: Output, place: Place, routing: Routing) -> jax.Array:
    """Count the choices of every expert in every visit, int32; 0 in visits that did not take place."""
    ran_TB = _ran(output, place, routing)
    return jnp.where(ran_TB[:, :, None, None], routing.load_BE, 0).astype(jnp.int32)


def _auxiliary(moe: MoE, routing: Routing, ran_TB: jax.Array, scored_B: jax.Array) -> jax.Array:
    balance = moe.balance
    if not balance.auxiliary_weight:
        return jnp.zeros((), jnp.float32)
    tokens_TB = _tokens_TB(routing, moe.experts_per_token)
    sums = jax.lax.stop_gradient(routing.load_BE), routing.score_BE
    load, score = (x / jnp.maximum(tokens_TB, 1)[:, :, None, None] for x in sums)
    counted_TB = jnp.where(ran_TB, tokens_TB, 0)
    match balance.auxiliary_over:
        case "sequence":
            loss_B = _mean(jnp.mean(moe.num_experts * jnp.sum(load * score, axis=-1), axis=2), ran_TB)
        case "batch":
            share_TB = counted_TB / jnp.maximum(jnp.sum(counted_TB, axis=1, keepdims=True), 1)
            f_TLE, P_TLE = (jnp.sum(share_TB[:, :, None, None] * x, axis=1) for x in (load, score))
            loss_TL = moe.num_experts * jnp.sum(f_TLE * P_TLE, axis=-1)
            some_T = jnp.any(ran_TB, axis=1)
            loss_B = jnp.sum(jnp.where(some_T, jnp.mean(loss_TL, axis=1), 0)) / jnp.maximum(jnp.sum(some_T), 1)
        case "model":
            share_TB = counted_TB / jnp.maximum(jnp.sum(counted_TB), 1)
            f_E, P_E = (jnp.sum(jnp.mean(share_TB[:, :, None, None] * x, axis=2), axis=(0, 1)) for x in (load, score))
            loss_B = moe.num_experts * jnp.sum(f_E * P_E)
    return balance.auxiliary_weight * jnp.sum(loss_B * scored_B)


def _heads(model: Model) -> tuple[np.ndarray, int]:
    """Return (the weight of every expert of both projections (E,), such that the entropy is a mean over the heads of
    each; how many experts a token chooses in all)."""
    mixture = model.attention
    assert isinstance(mixture, MixtureAttention)
    groups = num_head_groups(model, mixture)
    weights = [np.full(heads * mixture.num_experts, 1 / max(heads, 1), np.float32) for heads in groups]
    return mixture.entropy_weight * np.concatenate(weights), sum(groups) * mixture.experts_per_token


def _entropy(
    weight: float | np.ndarray, routing: Routing, choices: int, ran_TB: jax.Array, scored_B: jax.Array
) -> jax.Array:
    """Return the weighted entropy loss, (). weight: of all experts, or of each. choices: how many a token makes."""
    if routing.softmax_BE is None:
        return jnp.zeros((), jnp.float32)
    tokens_TB = jnp.maximum(_tokens_TB(routing, choices), 1)
    mean_BLE = _mean(routing.softmax_BE / tokens_TB[:, :, None, None], ran_TB)
    # 0 log 0 = 0: an expert far below the others has a probability that float32 rounds to 0.
    least = jnp.finfo(mean_BLE.dtype).tiny
    negative_entropy_BL = jnp.sum(weight * mean_BLE * jnp.log(jnp.maximum(mean_BLE, least)), axis=-1)
    return jnp.sum(jnp.sum(negative_entropy_BL, axis=1) * scored_B)


def _ran(output: Output, place: Place, routing: Routing) -> jax.Array:
    """Return which visits took place, (T, B) bool."""
    active_RB = {"block": output.depth.active_RB, "coda": output.read_active_TB}.get(place)
    return (
        jnp.ones_like(routing.z_B[:, :, 0], bool)
        if active_RB is None
        else jnp.broadcast_to(active_RB, routing.z_B.shape[:2])
    )


def _mean(x_TB: jax.Array, ran_TB: jax.Array) -> jax.Array:
    """Average x (T, B, ...) over the visits that took place; 0 where none did (a sampled head of a skipped loop)."""
    ran = ran_TB.reshape(*ran_TB.shape, *(1,) * (x_TB.ndim - 2))
    return jnp.sum(jnp.where(ran, x_TB, 0), axis=0) / jnp.maximum(jnp.sum(ran, axis=0), 1)


def _tokens_TB(routing: Routing, choices: int) -> jax.Array:
    """Count the tokens of every sequence in a visit. choices: how many a token makes."""
    return jnp.sum(jax.lax.stop_gradient(routing.load_BE[:, :, 0]), axis=-1) / choices
