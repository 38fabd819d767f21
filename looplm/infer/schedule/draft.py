"""Draft and verify with the model's own shallow loops (arXiv 2404.16710 with loops for layers): a few tokens are
written after few loops, then all of them run the rest of the loops in one pass, from the states that they have."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.infer.board import Board
from looplm.infer.items import Engine, Items
from looplm.infer.schedule.scheduler import Writer
from looplm.model.cache import Cache


@dataclass(frozen=True)
class DraftAndVerify:
    """A tick writes 1 to `tokens` + 1 tokens of every row."""

    loops: int
    """Loops of a draft."""
    tokens: int
    """Drafts in a row."""

    def empty(self, writer: Writer, batch_size: int, board: Board) -> tuple[()]:
        return ()

    def start(self, writer: Writer, board: Board) -> Board:
        return board

    def tick(self, writer: Writer, board: Board) -> Board:
        """Draft, then verify."""
        engine, (batch_size, num_tokens) = writer.engine, (board.length_B.shape[0], self.tokens + 1)
        first_B, rows_B = board.length_B - 1, jnp.arange(batch_size)

        def draft(at: tuple[Board, Items], s: jax.Array) -> tuple[tuple[Board, Items], None]:
            board, group = at
            item, cache = self._shallow(engine, board, first_B + s)
            group = jax.tree.map(
                lambda many, one: many if one.ndim == 1 else jax.lax.dynamic_update_slice_in_dim(many, one, s, 1),
                group, item,
            )  # fmt: skip

            def draw(board: Board) -> Board:
                logits_B1V, cache = engine.leave(board.cache, item, full=False)
                token_B1 = writer.draw(board, logits_B1V, rows_B, item.positions_NS)
                tokens_BT = board.tokens_BT.at[rows_B, first_B + s + 1].set(token_B1[:, 0], mode="drop")
                return board._replace(cache=cache, tokens_BT=tokens_BT)

            return (jax.lax.cond(s < self.tokens, draw, lambda board: board, board._replace(cache=cache)), group), None

        start = board, engine.none(None, batch_size, num_tokens)
        (board, group), _ = jax.lax.scan(draft, start, jnp.arange(num_tokens))
        group = group._replace(number_N=jnp.full(batch_size, self.loops))
        cache, group = _advance(engine, board.cache, group, engine.num_loops - self.loops)
        logits_BSV, cache = engine.leave(cache, group)
        token_BS = writer.draw(board, logits_BSV, rows_B, group.positions_NS)
        accepted_BS = jnp.cumprod(token_BS[:, :-1] == group.tokens_NS[:, 1:], axis=1)
        num_accepted_B = jnp.sum(accepted_BS, axis=1)
        active_B = board.active_B
        room_B = board.room_B - board.length_B
        # Only what there was room for counts as drafted.
        drafted_B, good_B = jnp.minimum(self.tokens, room_B - 1), jnp.minimum(num_accepted_B, room_B - 1)
        ran = num_tokens * self.loops + engine.num_loops - self.loops
        counts = board.counts.add(
            ticks=ran,
            slots=num_tokens * engine.num_loops * batch_size,
            used=num_tokens * engine.num_loops * jnp.sum(active_B),
            drafted=jnp.sum(jnp.where(active_B, drafted_B, 0)),
            accepted=jnp.sum(jnp.where(active_B, good_B, 0)),
        )
        board = board._replace(cache=cache, counts=counts)
        return board.commit(token_BS, engine.loops(group), num_accepted_B + 1, writer.end_ids_N)

    def _shallow(self, engine: Engine, board: Board, position_B: jax.Array) -> tuple[Items, Cache]:
        """Run the first loops of the tokens at these positions."""
        token_B1 = board.token_at(position_B)[:, None]
        item, cache = engine.enter(board.cache, token_B1, position_B[:, None], board.active_B[:, None])
        cache, item = _advance(engine, cache, item, self.loops)
        return item, cache


def _advance(engine: Engine, cache: Cache, items: Items, num_loops: int) -> tuple[Cache, Items]:
    def loop(_: jax.Array, at: tuple[Cache, Items]) -> tuple[Cache, Items]:
        items, cache = engine.advance(*at, together=True)
        return cache, items

    return jax.lax.fori_loop(0, num_loops, loop, (cache, items))
