"""Updates that would spoil the weights are not made, decided on the device within the step.

An update is bad when its loss or gradient norm is not finite, above an absolute ceiling, or a spike: far above the
median of the last good values. A bad update leaves everything as it was: weights, moments, averages, the optimizer's
counts and the window of good values, so one bad value never widens the window for the next. (A window that takes bad
values in has no finite deviation for as long as one NaN is in it: 129 steps were skipped after one in other code.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from looplm.config.schema import Guard

WINDOW = 128
"""Good values that are remembered."""
ENOUGH = 32
"""So many are needed before any value is called a spike."""
LEAST_DEVIATION = 0.01
"""Share of the median below which no deviation counts: values that hardly differ would make everything a spike."""
NORMAL = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


class GuardState(NamedTuple):
    """Kept with the optimizer's state, so that it is saved, restored and resumed with it."""

    good_2W: jax.Array
    """The last good losses and gradient norms, a ring, float32."""
    num_good: jax.Array
    """Good updates so far, int32."""
    skipped: jax.Array
    """Bad updates so far, int32."""
    in_a_row: jax.Array
    """Bad updates since the last good one, int32."""


class Guarded(NamedTuple):
    guard: GuardState
    optimizer: Any


def guarded(optimizer: optax.GradientTransformation, config: Guard) -> optax.GradientTransformationExtraArgs:
    """The optimizer, but `update(gradient, state, params, loss=, grad_norm=)` changes nothing when they are bad.

    `state.guard` says what was decided; updates of a bad step are -0.0.
    """

    def init(params: optax.Params) -> Guarded:
        # An array each: a step that donates its state must not be given a buffer twice.
        counts = (jnp.zeros((), jnp.int32) for _ in range(3))
        return Guarded(GuardState(jnp.zeros((2, WINDOW)), *counts), optimizer.init(params))

    def update(
        gradient: optax.Updates, state: Guarded, params: optax.Params, *, loss: jax.Array, grad_norm: jax.Array
    ) -> tuple[optax.Updates, Guarded]:
        values_2 = jnp.stack([loss, grad_norm]).astype(jnp.float32)
        # False for a NaN too.
        is_good = jnp.all(values_2 <= limits(state.guard, config)) & jnp.all(jnp.isfinite(values_2))
        updates, changed = optimizer.update(gradient, state.optimizer, params)
        # -0.0 is the number that changes none it is added to: 0.0 would turn -0.0 into 0.0.
        updates = jax.tree.map(lambda u: jax.lax.select(is_good, u, jnp.full_like(u, -0.0)), updates)
        kept = jax.tree.map(lambda new, old: jax.lax.select(is_good, new, old), changed, state.optimizer)
        return updates, Guarded(_counted(state.guard, is_good, values_2), kept)

    return optax.GradientTransformationExtraArgs(init, update)


def limits(guard: GuardState, config: Guard) -> jax.Array:
    """The largest good loss and gradient norm of the next step, (2,) float32; infinite where nothing is known.

    Median plus so many robust standard deviations (from the median absolute deviation) of the good values.
    """
    none = float("inf")
    ceilings_2 = jnp.array([config.max_loss or none, config.max_grad_norm or none], jnp.float32)
    if config.spike_deviations is None:
        return ceilings_2
    known = jnp.minimum(guard.num_good, WINDOW)
    median_2 = _median(guard.good_2W, known)
    deviation_2 = NORMAL * _median(jnp.abs(guard.good_2W - median_2[:, None]), known)
    deviation_2 = jnp.maximum(deviation_2, LEAST_DEVIATION * jnp.abs(median_2))
    spike_2 = median_2 + config.spike_deviations * deviation_2
    return jnp.minimum(ceilings_2, jnp.where(known >= ENOUGH, spike_2, none))


def _median(values_2W: jax.Array, known: jax.Array) -> jax.Array:
    """Of the first `known` of each row (at least one)."""
    ordered_2W = jnp.sort(jnp.where(jnp.arange(WINDOW) < known, values_2W, jnp.inf), axis=1)
    middle = jnp.stack([(known - 1) // 2, known // 2])
    return jnp.mean(jnp.take(ordered_2W, middle, axis=1, mode="clip"), axis=1)


def _counted(guard: GuardState, is_good: jax.Array, values_2: jax.Array) -> GuardState:
    is_place_W = jnp.arange(WINDOW) == guard.num_good % WINDOW
    good = is_good.astype(jnp.int32)
    return GuardState(
        jnp.where(is_good & is_place_W, values_2[:, None], guard.good_2W),
        guard.num_good + good,
        guard.skipped + 1 - good,
        (guard.in_a_row + 1) * (1 - good),
    )
