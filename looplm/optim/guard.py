"""Updates that would spoil the weights are not made, decided on the device within the step.

An update is bad when its loss or gradient norm is not finite, above an absolute ceiling, or a spike: far above the
median of the last good values. A bad update leaves everything as it was: weights, moments, averages, the optimizer's
counts and the window of good values, so one bad value never widens the window for the next. (A window that takes bad
values in has no finite deviation for as long as one NaN is in it: 129 steps were skipped after one in other code.)

A guard that only refuses never learns that the data have changed, and frozen weights never leave a steep place. So:

- What comes again and again is no spike. High values that good ones lie between were not caused by spoilt weights, so
  from the fourth within OFTEN updates on they count as hard data, and are trained on up to twice their height. High
  values in a row are what spoilt weights give: a row of them is one to this count, and a long one is bad in any case.
- `stop_after` high but finite values in a row are a new level: the window begins anew with the last of them. Where the
  level before was unplanned too and lasted less than a window, or `rewinds` are wanted, they are what ends the run.
- A planned stage of the run (`new_stage`) begins with an empty window.

A step without a label teaches nothing: it changes nothing, is no good value and no bad one, and is counted by itself.
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
AGAIN = 3
"""High values, each after a good one, that make hard data of the next."""
OFTEN = 4096
"""Updates within which they come. Known runs had one spike in 12,000 steps (arXiv 2204.02311, 5.1)."""
REMEMBERED = 8
"""High values that say how high hard data are: the second largest of them."""
LONG = 8
"""High values in a row after which the next is bad, hard data or not."""
_NEVER = jnp.iinfo(jnp.int32).min // 2


class GuardState(NamedTuple):
    """Kept with the optimizer's state, so that it is saved, restored and resumed with it."""

    good_2W: jax.Array
    """The last good losses and gradient norms, a ring, float32."""
    known: jax.Array
    """Good updates since the level began, int32: so many of the ring count."""
    high_2H: jax.Array
    """The last values that were far above the median and came after one that was not, whatever became of them."""
    high_at_2H: jax.Array
    """When that was: updates judged by then, int32."""
    high_in_a_row_2: jax.Array
    """High values since the last one that was not, int32."""
    num_good: jax.Array
    """Updates made so far, int32."""
    hard: jax.Array
    """Updates made so far though a value was high, int32."""
    new_levels: jax.Array
    """High values in a row that were taken for a new level so far, int32."""
    new_level_at: jax.Array
    """When that was last: updates made by then, int32."""
    skipped: jax.Array
    """Bad updates so far, int32."""
    in_a_row: jax.Array
    """Bad updates since the last good one, int32."""
    unlabelled: jax.Array
    """Steps without a label so far, int32."""


class Guarded(NamedTuple):
    guard: GuardState
    optimizer: Any


def guarded(optimizer: optax.GradientTransformation, config: Guard) -> optax.GradientTransformationExtraArgs:
    """The optimizer, but `update(gradient, state, params, loss=, grad_norm=, tokens=)` changes nothing when loss or
    norm are bad, or no token had a label.

    `state.guard` says what was decided; updates of such a step are -0.0.
    """

    def init(params: optax.Params) -> Guarded:
        # An array each: a step that donates its state must not be given a buffer twice.
        counts = {name: jnp.zeros((), jnp.int32) for name in GuardState._fields}
        rings = {"good_2W": jnp.zeros((2, WINDOW)), "high_2H": jnp.zeros((2, REMEMBERED))}
        times = {"high_at_2H": jnp.full((2, REMEMBERED), _NEVER), "new_level_at": jnp.full((), _NEVER)}
        guard = GuardState(**counts | rings | times | {"high_in_a_row_2": jnp.zeros(2, jnp.int32)})
        return Guarded(guard, optimizer.init(params))

    def update(
        gradient: optax.Updates,
        state: Guarded,
        params: optax.Params,
        *,
        loss: jax.Array,
        grad_norm: jax.Array,
        tokens: jax.Array | int = 1,
    ) -> tuple[optax.Updates, Guarded]:
        values_2 = jnp.stack([loss, grad_norm]).astype(jnp.float32)
        guard = _judged(state.guard, config, values_2, jnp.asarray(tokens) > 0)
        is_made = guard.num_good > state.guard.num_good
        updates, changed = optimizer.update(gradient, state.optimizer, params)
        # -0.0 is the number that changes none it is added to: 0.0 would turn -0.0 into 0.0.
        updates = jax.tree.map(lambda u: jax.lax.select(is_made, u, jnp.full_like(u, -0.0)), updates)
        kept = jax.tree.map(lambda new, old: jax.lax.select(is_made, new, old), changed, state.optimizer)
        return updates, Guarded(guard, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def new_stage(guard: GuardState) -> GuardState:
    """Forgets what losses and gradients are usual, as at the start of a run; counts stay."""
    return guard._replace(
        known=jnp.zeros_like(guard.known),
        high_at_2H=jnp.full_like(guard.high_at_2H, _NEVER),
        high_in_a_row_2=jnp.zeros_like(guard.high_in_a_row_2),
    )


def limits(guard: GuardState, config: Guard) -> jax.Array:
    """The largest good loss and gradient norm of the next step, (2,) float32; infinite where nothing is known."""
    usual_2, hard_2 = _levels(guard, config)
    return jnp.minimum(_ceilings(config), jnp.maximum(usual_2, hard_2))


def _ceilings(config: Guard) -> jax.Array:
    none = float("inf")
    return jnp.array([config.max_loss or none, config.max_grad_norm or none], jnp.float32)


def _levels(guard: GuardState, config: Guard) -> tuple[jax.Array, jax.Array]:
    """Above the first a value is high, and above both a spike; each (2,) float32.

    The first is the median plus so many robust standard deviations (from the median absolute deviation) of the good
    values; the second twice as far from that median as hard data are, where high values come often.
    """
    none_2 = jnp.full(2, jnp.inf)
    if config.spike_deviations is None:
        return none_2, none_2
    known = jnp.minimum(guard.known, WINDOW)
    median_2 = _median(guard.good_2W, known)
    deviation_2 = NORMAL * _median(jnp.abs(guard.good_2W - median_2[:, None]), known)
    deviation_2 = jnp.maximum(deviation_2, LEAST_DEVIATION * jnp.abs(median_2))
    usual_2 = jnp.where(known >= ENOUGH, median_2 + config.spike_deviations * deviation_2, none_2)
    is_recent_2H = _judgements(guard) - guard.high_at_2H < OFTEN
    come_often_2 = (jnp.sum(is_recent_2H, axis=1) >= AGAIN) & (guard.high_in_a_row_2 < LONG)
    high_2H = jnp.sort(jnp.where(is_recent_2H, guard.high_2H, -jnp.inf), axis=1)
    hard_2 = 2 * high_2H[:, -2] - median_2
    return usual_2, jnp.where(come_often_2, hard_2, -none_2)


def _judgements(guard: GuardState) -> jax.Array:
    return guard.num_good + guard.skipped


def _median(values_2W: jax.Array, known: jax.Array) -> jax.Array:
    """Of the first `known` of each row (at least one)."""
    ordered_2W = jnp.sort(jnp.where(jnp.arange(WINDOW) < known, values_2W, jnp.inf), axis=1)
    middle = jnp.stack([(known - 1) // 2, known // 2])
    return jnp.mean(jnp.take(ordered_2W, middle, axis=1, mode="clip"), axis=1)


def _judged(guard: GuardState, config: Guard, values_2: jax.Array, has_labels: jax.Array) -> GuardState:
    """The state after an update with these values; `num_good` has grown if it is to be made."""
    usual_2, hard_2 = _levels(guard, config)
    # False for a NaN too.
    is_sane = jnp.all(jnp.isfinite(values_2)) & jnp.all(values_2 <= _ceilings(config)) & has_labels
    is_usual = is_sane & jnp.all(values_2 <= jnp.maximum(usual_2, hard_2))
    is_high_2 = values_2 > usual_2
    high_in_a_row_2 = jnp.where(is_sane, (guard.high_in_a_row_2 + 1) * is_high_2, guard.high_in_a_row_2)
    is_new_level = (
        (is_sane & ~is_usual)
        & (config.rewinds == 0)
        & (jnp.minimum(guard.in_a_row + 1, jnp.max(high_in_a_row_2)) >= config.stop_after)
        & (guard.num_good - guard.new_level_at >= WINDOW)
    )
    is_good = is_usual | is_new_level
    enters_2 = is_sane & is_high_2 & (guard.high_in_a_row_2 == 0)

    def entered(ring_2H: jax.Array, newest_2: jax.Array) -> jax.Array:
        return jnp.where(enters_2[:, None], jnp.concatenate([ring_2H[:, 1:], newest_2[:, None]], axis=1), ring_2H)

    good, bad = is_good.astype(jnp.int32), (has_labels & ~is_good).astype(jnp.int32)
    known = jnp.where(is_new_level, 0, guard.known)
    is_place_W = jnp.arange(WINDOW) == known % WINDOW
    return GuardState(
        good_2W=jnp.where(is_good & is_place_W, values_2[:, None], guard.good_2W),
        known=known + good,
        high_2H=entered(guard.high_2H, values_2),
        high_at_2H=entered(guard.high_at_2H, jnp.broadcast_to(_judgements(guard), 2)),
        high_in_a_row_2=jnp.where(is_new_level, 0, high_in_a_row_2),
        num_good=guard.num_good + good,
        hard=guard.hard + is_usual * jnp.any(is_high_2),
        new_levels=guard.new_levels + is_new_level,
        new_level_at=jnp.where(is_new_level, guard.num_good, guard.new_level_at),
        skipped=guard.skipped + bad,
        in_a_row=jnp.where(has_labels, (guard.in_a_row + 1) * bad, guard.in_a_row),
        unlabelled=guard.unlabelled + jnp.where(has_labels, 0, 1),
    )
