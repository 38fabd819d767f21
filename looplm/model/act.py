"""Adaptive computation time as a halting rule (arXiv 1603.08983; in loops over depth, arXiv 1807.03819).

    p_t = sigmoid(w . h_t + b)                      h_t: the state that enters loop t, or the one that it makes
    u_t = p_t  while  p_1 + .. + p_t <= threshold,  1 - (p_1 + .. + p_{t-1}) where that is exceeded first, then 0
    m_t = u_t s_t + (1 - u_t) m_{t-1}   or   u_t s_t + m_{t-1}
    cost = (loops with u_t > 0) + remainder         the gradient flows through the remainder

The loops themselves never stop early in training: a token that has stopped gets the weight 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import ACTHalting, Cost, Model, SinusoidalConditioning
from looplm.model.conditioning import build_conditioning
from looplm.model.context import Context
from looplm.model.gates import Units
from looplm.model.halting import Never, State, Told, mean_over_tokens, select_tokens
from looplm.model.init import Init
from looplm.ops.precision import at_least_fp32


class Halted(NamedTuple):
    """Accumulators of `ACT`, float32 at least."""

    total_BS: jax.Array
    """Sum of the weights so far; 1 for tokens that have stopped."""
    remainder_BS: jax.Array
    """Weight of the loop at which a token stopped; 0 before."""
    updates_BS: jax.Array
    """How many loops a token took part in."""
    running_BS: jax.Array
    """Whether it took part in the latest loop, bool."""
    weight_BS: jax.Array
    """Of the latest loop."""
    mean_BSD: jax.Array


class ACT(Never):
    """A token is read as the mean of its states, weighted by the probability that it stopped there."""

    def __init__(self, config: Model, kind: ACTHalting, *, rngs: nnx.Rngs):
        self.kind = kind
        self.unit = Units(config.dim, 1, Init.of(config).matrix, bias=kind.initial_bias, rngs=rngs)
        signals = isinstance(config.conditioning, SinusoidalConditioning) and kind.unit_reads == "before"
        self.signals = build_conditioning(config, rngs=rngs) if signals else None

    def init(self, h_BSD: jax.Array) -> Halted:
        mean_BSD = jnp.zeros_like(at_least_fp32(h_BSD))
        zeros_BS = mean_BSD[..., 0]
        return Halted(zeros_BS, zeros_BS, zeros_BS, zeros_BS == 0, zeros_BS, mean_BSD)

    def admit(self, acc: Halted, h_BSD: jax.Array, context: Context) -> tuple[Halted, None]:
        if self.kind.unit_reads == "after":
            return acc, None
        read_BSD = h_BSD if self.signals is None else self.signals(h_BSD, context)[0]
        return self._weighed(acc, read_BSD, context), None

    def update(self, acc: Halted, old: State, new: State, h_BSD: jax.Array, context: Context) -> tuple[State, Halted]:
        if self.kind.unit_reads == "after":
            acc = self._weighed(acc, h_BSD, context)
        weight_BS1 = acc.weight_BS[..., None]
        kept = 1 - weight_BS1 if self.kind.mean == "running" else 1
        acc = acc._replace(mean_BSD=weight_BS1 * h_BSD + kept * acc.mean_BSD)
        return (select_tokens(acc.running_BS, new, old) if self.kind.freezes else new), acc

    def finish(self, acc: Halted, h_BSD: jax.Array) -> jax.Array:
        return acc.mean_BSD.astype(h_BSD.dtype)

    def left(self, acc: Halted) -> jax.Array:
        return acc.total_BS >= 1

    def exits(self, acc: Halted) -> jax.Array:
        return acc.updates_BS.astype(jnp.int32) - 1

    def told(self, acc: Halted, counted_BS: jax.Array | None, step: jax.Array | None) -> Told:
        updates_B, remainder_B = (
            mean_over_tokens(acc.updates_BS, counted_BS),
            mean_over_tokens(acc.remainder_BS, counted_BS),
        )
        cost_B = weight_at(self.kind.cost, step) * (updates_B + remainder_B)
        return Told(cost_B, {"halt/loops": updates_B, "halt/remainder": remainder_B})

    def _weighed(self, acc: Halted, h_BSD: jax.Array, context: Context) -> Halted:
        """Give the loop its weight; h_BSD is what the unit reads."""
        p_BS, running_BS = jax.nn.sigmoid(self.unit(h_BSD)[..., 0]), acc.total_BS < 1
        stops_BS = acc.total_BS + p_BS > self.kind.threshold
        if self.kind.rest_to_last:
            stops_BS |= (context.loop.number_B == context.loop.total_B - 1)[:, None]
        stops_BS &= running_BS
        weight_BS = jnp.where(stops_BS, 1 - acc.total_BS, jnp.where(running_BS, p_BS, 0))
        return acc._replace(
            total_BS=jnp.where(stops_BS, 1.0, acc.total_BS + weight_BS),
            remainder_BS=acc.remainder_BS + jnp.where(stops_BS, weight_BS, 0),
            updates_BS=acc.updates_BS + running_BS,
            running_BS=running_BS,
            weight_BS=weight_BS,
        )


def weight_at(cost: Cost, step: jax.Array | None) -> jax.Array | float:
    """Return the weight in a training step, from 0; the full one outside of training."""
    if step is None or not (cost.starts_at or cost.grows_over):
        return cost.weight
    if not cost.grows_over:
        return jnp.where(step >= cost.starts_at, cost.weight, 0.0)
    return cost.weight * jnp.clip((step - cost.starts_at) / cost.grows_over, 0.0, 1.0)
