"""Routers over depth as halting rules: Mixture of Recursions (arXiv 2507.10524).

    expert choice   loop t takes the tokens of highest score among those of loop t - 1:  s + g_t block(s)
    token choice    depth = argmax of the scores of s_0;  out = s_0 + g block(..block(s_0)), as many loops as that

Tokens that are not in a loop keep their state; the others do not see them, unless `sees_left`. The loop is computed for
all of them all the same, unless the rule gathers their rows (`rows.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.context import Context
from looplm.model.gates import Units
from looplm.model.halting import Never, State, Told, mean_over_tokens, select_tokens
from looplm.model.init import Init
from looplm.model.rows import Admitted, rows_of
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import lay_out


class Router(nnx.Module):
    """Logits of a state: linear units, with a gelu layer before them or without."""

    def __init__(
        self, config: Model, kind: schema.DepthRouter, count: int, *, loops: int | None = None, rngs: nnx.Rngs
    ):
        D, init = config.dim, Init.of(config).matrix
        self.temperature = kind.temperature
        self.widen = Units(D, 2 * D, init, loops=loops, rngs=rngs) if kind.hidden else None
        self.units = Units(2 * D if kind.hidden else D, count, init, loops=loops, rngs=rngs)

    def __call__(self, h_BSD: jax.Array) -> jax.Array:
        """Return logits (B, S, K), float32 at least."""
        x_BSD = at_least_fp32(h_BSD) / self.temperature
        return self.units(x_BSD if self.widen is None else jax.nn.gelu(self.widen(x_BSD), approximate=False))


class Chosen(NamedTuple):
    """Accumulators of `ExpertChoice`."""

    active_BS: jax.Array
    """Who is in the latest loop, bool."""
    score_BS: jax.Array
    """Of the latest loop."""
    loops_BS: jax.Array
    """How many loops a token was in, int32."""
    auxiliary_BS: jax.Array
    """Cross-entropies of all loops so far, each divided by how many tokens it is of."""
    z_BS: jax.Array
    """Squared log-normalisers, likewise."""


class ExpertChoice(Never):
    """In every loop its own router takes the best share of the tokens that were in the loop before."""

    def __init__(self, config: Model, kind: schema.ExpertChoice, *, rngs: nnx.Rngs):
        self.kind = kind
        self.router = Router(config, kind, 1, loops=len(kind.capacities), rngs=rngs)

    @property
    def gathers(self) -> bool:
        return self.kind.gathers

    def init(self, h_BSD: jax.Array) -> Chosen:
        zeros_BS = lay_out(jnp.zeros_like(at_least_fp32(h_BSD[..., 0])), "batch", "sequence")
        return Chosen(zeros_BS == 0, zeros_BS, zeros_BS.astype(jnp.int32), zeros_BS, zeros_BS)

    def admit(self, acc: Chosen, h_BSD: jax.Array, context: Context) -> tuple[Chosen, Admitted]:
        kind = self.kind
        logits_BS = lay_out(self.router(h_BSD)[..., 0], "batch", "sequence")
        before_BS = acc.active_BS if context.counted_BS is None else acc.active_BS & context.counted_BS
        active_BS = (
            self._best(logits_BS, before_BS, context)
            if context.with_capacity
            else before_BS & (logits_BS >= (0.5 if kind.score == "none" else 0.0))
        )
        score_BS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "none": lambda x: x}[kind.score](logits_BS)
        share_BS = before_BS / jnp.maximum(jnp.sum(before_BS, axis=1, keepdims=True), 1)
        bce_BS = jax.nn.softplus(logits_BS) - jnp.where(active_BS, logits_BS, 0)
        acc = Chosen(
            active_BS,
            score_BS * (1.0 if kind.score == "none" else kind.alpha),
            acc.loops_BS + active_BS,
            acc.auxiliary_BS + share_BS * bce_BS,
            acc.z_BS + share_BS * jnp.square(logits_BS),
        )
        if kind.gathers and context.with_capacity and context.loop.known is not None:
            return acc, rows_of(active_BS, self._count(context.loop.known, active_BS.shape[1]))
        return acc, None if kind.sees_left else active_BS

    def update(self, acc: Chosen, old: State, new: State, h_BSD: jax.Array, context: Context) -> tuple[State, Chosen]:
        def moved(old: jax.Array, new: jax.Array) -> jax.Array:
            if self.kind.gating == "none":
                return old + new
            return old + (acc.score_BS.reshape(*acc.score_BS.shape, *(1,) * (new.ndim - 2)) * new).astype(new.dtype)

        return select_tokens(acc.active_BS, jax.tree.map(moved, old, new), old), acc

    def left(self, acc: Chosen) -> jax.Array:
        return ~acc.active_BS

    def exits(self, acc: Chosen) -> jax.Array:
        return jnp.maximum(acc.loops_BS - 1, 0)

    def told(self, acc: Chosen, counted_BS: jax.Array | None, step: jax.Array | None) -> Told:
        auxiliary_B, z_B = jnp.sum(acc.auxiliary_BS, axis=1), jnp.sum(acc.z_BS, axis=1)
        cost_B = self.kind.auxiliary_weight * auxiliary_B + self.kind.z_loss_weight * z_B
        loops_B = mean_over_tokens(acc.loops_BS.astype(cost_B.dtype), counted_BS)
        return Told(cost_B, {"halt/loops": loops_B, "halt/auxiliary": auxiliary_B, "halt/z": z_B})

    def _count(self, number: int, length: int) -> int:
        """Return how many tokens of a sequence a loop takes."""
        return max(1, int(self.kind.capacities[min(number, len(self.kind.capacities) - 1)] * length))

    def _best(self, logits_BS: jax.Array, before_BS: jax.Array, context: Context) -> jax.Array:
        """Choose the tokens of highest score; of equal ones the first."""
        length = logits_BS.shape[1]
        counts = jnp.array([self._count(number, length) for number in range(len(self.kind.capacities))])
        count_B1 = counts[jnp.minimum(context.loop.number_B, counts.size - 1)][:, None]
        # JAX 0.10 lays neither `argsort` nor the derivative of a sort out on a mesh.
        places_BS = lay_out(jnp.broadcast_to(jnp.arange(logits_BS.shape[1]), logits_BS.shape), "batch", "sequence")
        keys_BS = jax.lax.stop_gradient(jnp.where(before_BS, -logits_BS, jnp.inf))
        _, order_BS = jax.lax.sort((keys_BS, places_BS), dimension=1, num_keys=1)
        _, rank_BS = jax.lax.sort((order_BS, places_BS), dimension=1, num_keys=1)
        return before_BS & (rank_BS < count_B1)


class Assigned(NamedTuple):
    """Accumulators of `TokenChoice`."""

    depth_BS: jax.Array
    """Number of a token's last loop, from 0, int32."""
    score_BSR: jax.Array
    z_BS: jax.Array
    """Squared log-normaliser of a token's logits."""
    first_BSD: jax.Array
    """What was read of the first state."""
    number_BS: jax.Array
    """Number of the next loop, int32."""


class TokenChoice(Never):
    """Every token is given its depth before the first loop, and keeps its state after that."""

    def __init__(self, config: Model, kind: schema.TokenChoice, *, rngs: nnx.Rngs):
        self.kind = kind
        self.router = Router(config, kind, kind.loops, rngs=rngs)

    def init(self, h_BSD: jax.Array) -> Assigned:
        logits_BSR = self.router(h_BSD)
        score = jax.nn.softmax if self.kind.score == "softmax" else jax.nn.sigmoid
        depth_BS, z_BS = jnp.argmax(logits_BSR, axis=-1), jnp.square(jax.nn.logsumexp(logits_BSR, axis=-1))
        return Assigned(depth_BS, self.kind.alpha * score(logits_BSR), z_BS, h_BSD, jnp.zeros_like(depth_BS))

    def admit(self, acc: Assigned, h_BSD: jax.Array, context: Context) -> tuple[Assigned, jax.Array | None]:
        acc = acc._replace(number_BS=acc.number_BS * 0 + context.loop.number_B[:, None])
        return acc, None if self.kind.sees_left else lay_out(acc.depth_BS >= acc.number_BS, "batch", "sequence")

    def update(
        self, acc: Assigned, old: State, new: State, h_BSD: jax.Array, context: Context
    ) -> tuple[State, Assigned]:
        state = select_tokens(acc.depth_BS >= acc.number_BS, new, old)
        return state, acc._replace(number_BS=acc.number_BS + 1)

    def finish(self, acc: Assigned, h_BSD: jax.Array) -> jax.Array:
        if self.kind.gating == "none":
            return acc.first_BSD + h_BSD
        # Not by an index: the gradient of a gather is a scatter.
        chosen_BSR = jnp.arange(self.kind.loops) == acc.depth_BS[..., None]
        score_BS1 = jnp.sum(jnp.where(chosen_BSR, acc.score_BSR, 0), axis=-1, keepdims=True)
        return acc.first_BSD + (score_BS1 * h_BSD).astype(h_BSD.dtype)

    def left(self, acc: Assigned) -> jax.Array:
        return acc.depth_BS < acc.number_BS

    def exits(self, acc: Assigned) -> jax.Array:
        return jnp.minimum(acc.depth_BS, jnp.maximum(acc.number_BS - 1, 0)).astype(jnp.int32)

    def told(self, acc: Assigned, counted_BS: jax.Array | None, step: jax.Array | None) -> Told:
        loops, z_B = self.kind.loops, mean_over_tokens(acc.z_BS, counted_BS)
        depth_BS, score_BSR = (
            lay_out(acc.depth_BS, "batch", "sequence"),
            lay_out(acc.score_BSR, "batch", "sequence", "one"),
        )
        counted_BS1 = jnp.ones_like(depth_BS, bool)[..., None] if counted_BS is None else counted_BS[..., None]
        tokens = jnp.maximum(jnp.sum(counted_BS1), 1)
        chosen_BSR = jnp.arange(loops) == depth_BS[..., None]
        share_R = jnp.sum(chosen_BSR, axis=(0, 1), where=counted_BS1) / tokens
        mean_R = jnp.sum(score_BSR, axis=(0, 1), where=counted_BS1) / tokens
        balance = loops * jnp.sum(share_R * mean_R)
        cost_B = self.kind.balance_weight * balance + self.kind.z_loss_weight * z_B
        loops_B = mean_over_tokens((depth_BS + 1).astype(z_B.dtype), counted_BS)
        return Told(cost_B, {"halt/loops": loops_B, "halt/balance": balance + 0 * z_B, "halt/z": z_B})
