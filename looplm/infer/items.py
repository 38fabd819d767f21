"""Items: tokens on their way through the loops. `Engine.advance` takes any set of them one loop further.

Every way to write text is a scheduler over three steps: `enter` (embedding and prelude), `advance` (one loop of the
block), `leave` (coda, norm and head). Items of one call may be of any rows and at any loops, so a scheduler decides
what is computed together, and never what is computed.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.model.cache import Cache
from looplm.model.context import Context
from looplm.model.depth import Loop
from looplm.model.halting import Halting, select_tokens
from looplm.model.inputs import Inputs
from looplm.model.lm import Entered, LoopLM
from looplm.model.loop import slice_of_loop
from looplm.model.output import Carry
from looplm.model.report import Report
from looplm.ops.attention import Asked, cached_mask, prepare, self_mask
from looplm.ops.precision import at_least_fp32

STATE_PURPOSE, SAMPLE_PURPOSE = 0, 1
"""Folded into keys, so that first states and tokens draw from streams of their own."""
NOWHERE = -2
"""Position of an item that no token has had: no other position is next to it."""


class Items(NamedTuple):
    """N groups of S tokens. Tokens of a group are of one row and have run the same number of loops."""

    row_N: jax.Array | None
    """Row of the cache of every group, int32; None: group i has row i."""
    positions_NS: jax.Array
    """int32."""
    tokens_NS: jax.Array
    """Ids, int32."""
    live_NS: jax.Array
    """False for places that hold no token: what is computed for them goes nowhere."""
    number_N: jax.Array
    """How many loops they have run, int32."""
    entered_NSD: jax.Array
    """What the prelude made of them."""
    state: Any
    """The core's state: a tree of arrays (N, S, ...)."""
    halt: Any
    """The halting rule's accumulators: a tree of arrays (N, S, ...)."""
    early_NSD: jax.Array | None
    """What was read after the loop that the last one is contrasted with; None where nothing is."""

    @property
    def rows_N(self) -> jax.Array:
        """The row of every group."""
        return jnp.arange(self.positions_NS.shape[0]) if self.row_N is None else self.row_N

    def take(self, groups_E: jax.Array) -> "Items":
        """Return some of the groups. Those that are not there are not alive."""
        there_E = groups_E < self.positions_NS.shape[0]
        taken = jax.tree.map(lambda leaf: leaf[groups_E], self._replace(row_N=self.rows_N))
        return taken._replace(live_NS=taken.live_NS & there_E[:, None])

    def put(self, groups_E: jax.Array, items: "Items") -> "Items":
        """Replace groups; those that are not there are dropped."""
        new = items._replace(row_N=None)
        old = self._replace(row_N=None)
        put = jax.tree.map(lambda old, new: old.at[groups_E].set(new, mode="drop"), old, new)
        return put._replace(row_N=self.row_N)

    def at(self, place_N: jax.Array) -> "Items":
        """Return one token of every group, which is not alive."""
        one = jax.tree.map(
            lambda leaf: leaf if leaf.ndim == 1 else jnp.stack([leaf[jnp.arange(leaf.shape[0]), place_N]], axis=1), self
        )
        return one._replace(live_NS=jnp.zeros_like(one.live_NS))

    def without(self, gone_B: jax.Array) -> "Items":
        """Forget the items of some rows, and where they stood."""
        gone_N1 = gone_B[self.rows_N][:, None]
        positions_NS = jnp.where(gone_N1, NOWHERE, self.positions_NS)
        return self._replace(live_NS=self.live_NS & ~gone_N1, positions_NS=positions_NS)


class Contrast(NamedTuple):
    """The last loop against an earlier one: (1 + weight) * its logits - weight * those of loop `loop` (LoopCD)."""

    loop: int
    """After how many loops the weaker prediction is read."""
    weight: float


@dataclass(frozen=True)
class Engine:
    """A model with its parameters inside a traced function, and how it is run."""

    model: LoopLM
    halting: Halting
    num_loops: int
    """Loops of a token, at most."""
    dtype: jax.typing.DTypeLike
    num_places: int
    """T: positions of the cache."""
    num_ids: int
    """Ids that may be written."""
    stream_B: jax.Array
    """Random stream of every row, uint32."""
    exact: bool = False
    """Whether a token that has left runs on for its keys and values alone."""
    contrast: Contrast | None = None
    step_size: float = 1.0
    prompt_B: jax.Array | None = None
    """Tokens of every row's prompt, which see one another where the mask has a prefix, int32; needed while they are
    taken up, since whoever is written sees all of them."""

    def context(self, items_or_row_N: jax.Array, positions_NS: jax.Array, row_N: jax.Array | None) -> Context:
        """Return what the layers need of items of these rows; all of them are written into the cache."""
        config = self.model.config
        asked = Asked(positions_NS.shape[1], self.dtype, config.head_size)
        prompt_N = None if self.prompt_B is None else self.prompt_B[items_or_row_N]
        mask = prepare(cached_mask(config, positions_NS, self.num_places, prompt_N), asked)
        key = jax.random.fold_in(jax.random.key(0), STATE_PURPOSE)
        return Context(
            positions_NS,
            mask,
            key=key,
            sequence_B=self.stream_B[items_or_row_N],
            row_B=row_N,
            step_size=self.step_size,
        )

    def enter(
        self,
        cache: Cache,
        tokens_NS: jax.Array,
        positions_NS: jax.Array,
        live_NS: jax.Array,
        row_N: jax.Array | None = None,
        before: Items | None = None,
    ) -> tuple[Items, Cache]:
        """Make items that have run no loop.

        before: items of the same rows whose last state is the first one of the next position. None: first states are
            those of the model.
        """
        rows_N = jnp.arange(tokens_NS.shape[0]) if row_N is None else row_N
        context = replace(self.context(rows_N, positions_NS, row_N), left_BS=~live_NS)
        inputs, entered = self.model.enter(tokens_NS, context, self.dtype, cache.prelude)
        state, read = self.model.core.init_state(inputs, context), self.model.core.read
        if before is not None:
            follows_NS = before.positions_NS == positions_NS - 1
            state = select_tokens(follows_NS, before.state, state)
        h_NSD = read(state)
        early_NSD = h_NSD if self.contrast else None
        halt, number_N = self.halting.init(h_NSD), jnp.zeros_like(rows_N)
        items = Items(row_N, positions_NS, tokens_NS, live_NS, number_N, inputs.entered_BSD, state, halt, early_NSD)
        return items, cache._replace(prelude=entered.cache)

    def none(self, row_N: jax.Array | None, batch_size: int, group: int = 1) -> Items:
        """Return places for items, of which none is alive: a group for every row_N, or for every row."""
        num = batch_size if row_N is None else row_N.shape[0]
        zeros_NS = jnp.zeros((num, group), jnp.int32)

        def enter() -> Items:
            context = self.context(jnp.zeros(num, jnp.int32), zeros_NS, None)
            context = replace(context, mask=self_mask(self.model.config, zeros_NS))
            inputs, _ = self.model.enter(zeros_NS, context, self.dtype)
            state = self.model.core.init_state(inputs, context)
            h_NSD = self.model.core.read(state)
            return Items(
                row_N, zeros_NS, zeros_NS, zeros_NS != 0, zeros_NS[:, 0], inputs.entered_BSD, state,
                self.halting.init(h_NSD), h_NSD if self.contrast else None,
            )  # fmt: skip

        items = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(enter))
        return items._replace(row_N=row_N, positions_NS=zeros_NS + NOWHERE)

    def advance(self, cache: Cache, items: Items, *, together: bool = False) -> tuple[Items, Cache]:
        """Run one loop of every item that lives and has not left.

        together: whether all of them have run equally many loops, which is cheaper to look up.
        """
        there_NS = items.live_NS & ~self.left(items)
        context, inputs, _ = self._inside(cache, items)
        context = replace(context, left_BS=~there_NS)
        body = self.model.body(context, self.halting)
        number_N = items.number_N[:1] if together else items.number_N
        own = slice_of_loop(body.per_loop, number_N[0])
        loop = Loop(number_N, jnp.full(1, self.num_loops), own)
        carry, _ = body.step(body.parameters, Carry(items.state, items.halt, cache.block), inputs, loop)
        early_NSD = items.early_NSD
        if self.contrast is not None and early_NSD is not None:
            is_early_N11 = (items.number_N < self.contrast.loop)[:, None, None]
            early_NSD = jnp.where(is_early_N11, self.model.core.read(carry.state), early_NSD)
        moved = items._replace(number_N=items.number_N + 1, state=carry.state, halt=carry.halt, early_NSD=early_NSD)
        return moved, cache._replace(block=carry.cache)

    def left(self, items: Items) -> jax.Array:
        """Return which items run no more loops, (N, S) bool."""
        left_NS = jnp.broadcast_to((items.number_N >= self.num_loops)[:, None], items.live_NS.shape)
        by_rule_NS = self.halting.left(items.halt)
        return left_NS if by_rule_NS is None or self.exact else left_NS | by_rule_NS

    def loops(self, items: Items) -> jax.Array:
        """Return after how many loops every item is read, (N, S) int32."""
        if self.halting.left(items.halt) is not None:
            return self.halting.exits(items.halt) + 1
        return jnp.broadcast_to(items.number_N[:, None], items.live_NS.shape)

    def leave(
        self, cache: Cache, items: Items, *, full: bool = True, only_N: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Read items. Returns (logits (N, S, num_ids) float32, the cache).

        In loops that an item did not run it stands in the cache as it was in its last one, so that a row does not
        depend on others.

        Args:
            full: False for drafts, which have loops before them: what is read is their state, and the block's cache
                stays as it is.
            only_N: place of the one token of every group whose logits are returned, (N, 1, num_ids).
        """
        context, _, entered = self._inside(cache, items)
        model, read = self.model, self.model.core.read

        def logits(h_NSD: jax.Array) -> tuple[jax.Array, Any]:
            hidden_NSD, coda, _ = model.leave(h_NSD, context, entered, cache.coda)
            if only_N is not None:
                hidden_NSD = jnp.take_along_axis(hidden_NSD, only_N[:, None, None], axis=1)
            return at_least_fp32(model.logits(hidden_NSD))[..., : self.num_ids], coda

        if not full:
            logits_NSV, coda = logits(read(items.state))
            return logits_NSV, cache._replace(coda=coda)
        logits_NSV, coda = logits(self.halting.finish(items.halt, read(items.state)))
        if self.contrast is not None and items.early_NSD is not None:
            logits_NSV += self.contrast.weight * (logits_NSV - logits(items.early_NSD)[0])
        return logits_NSV, self.settle(cache._replace(coda=coda), items, items.live_NS)

    def settle(self, cache: Cache, items: Items, left_NS: jax.Array) -> Cache:
        """Let items that have left stand in all loops as in their last one."""
        if cache.block is None or self.halting.left(items.halt) is None or self.exact:
            return cache
        exit_NS = self.halting.exits(items.halt)
        return cache._replace(block=cache.block.fill(exit_NS, items.positions_NS, self.num_loops, items.row_N, left_NS))

    def _inside(self, cache: Cache, items: Items) -> tuple[Context, Inputs, Entered]:
        """Return what loops and coda get of items."""
        context = replace(self.context(items.rows_N, items.positions_NS, items.row_N), left_BS=~items.live_NS)
        embedded_NSD, values = self.model.embed(items.tokens_NS, context, self.dtype)
        entered = Entered(values, cache.prelude, Report())
        context = replace(context, predict=self.model.predictor(context, entered, cache.coda))
        return context, Inputs(items.entered_NSD, embedded_NSD, items.tokens_NS, values.block), entered
