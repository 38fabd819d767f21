"""Continuous depth batching (arXiv 2608.09444): rows of one batch are at different loops of the same weights, and a row
whose token has left takes its next token at once."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.infer.board import Board
from looplm.infer.items import Items
from looplm.infer.schedule.scheduler import Writer

LEAVERS = 4
"""Of so many rows one leaves at a time: coda and head are no batch of all rows in every loop."""


@dataclass(frozen=True)
class DepthBatching:
    """A tick is one loop of every row, then coda, head and prelude of those that have left."""

    def empty(self, writer: Writer, batch_size: int, board: Board) -> Items:
        return writer.engine.none(None, batch_size)

    def start(self, writer: Writer, board: Board) -> Board:
        """Enter the last token of every row that has none on its way."""
        position_B1 = board.length_B[:, None] - 1
        waits_B1 = board.active_B[:, None] & ~board.items.live_NS
        token_B1 = board.token_at(position_B1[:, 0])[:, None]
        before = board.items if writer.warm_start else None
        items, cache = writer.engine.enter(board.cache, token_B1, position_B1, waits_B1, before=before)
        groups_B = jnp.where(waits_B1[:, 0], jnp.arange(waits_B1.shape[0]), waits_B1.shape[0])
        return board._replace(cache=cache, items=board.items.put(groups_B, items))

    def tick(self, writer: Writer, board: Board) -> Board:
        """Run one loop of every row."""
        engine, batch_size = writer.engine, board.length_B.shape[0]
        used = jnp.sum(board.items.live_NS)
        items, cache = engine.advance(board.cache, board.items)
        board = board._replace(cache=cache, items=items, counts=board.counts.add(ticks=1, slots=batch_size, used=used))

        def has_leavers(board: Board) -> jax.Array:
            return jnp.any(board.items.live_NS & engine.left(board.items))

        return jax.lax.while_loop(has_leavers, lambda board: self._next_tokens(writer, board), board)

    def _next_tokens(self, writer: Writer, board: Board) -> Board:
        """Read some of the rows that have left, and enter what they wrote."""
        engine, batch_size = writer.engine, board.length_B.shape[0]
        leaves_B = (board.items.live_NS & engine.left(board.items))[:, 0]
        (row_E,) = jnp.nonzero(leaves_B, size=-(-batch_size // LEAVERS), fill_value=batch_size)
        leavers = board.items.take(row_E)
        logits_E1V, cache = engine.leave(board.cache, leavers)
        drawn_E1 = writer.draw(board, logits_E1V, row_E, leavers.positions_NS)

        def of_rows(x_E: jax.Array) -> jax.Array:
            return jnp.zeros(batch_size, jnp.int32).at[row_E].set(x_E, mode="drop")

        token_B, loops_B = of_rows(drawn_E1[:, 0]), of_rows(engine.loops(leavers)[:, 0])
        num_B = of_rows(leavers.live_NS[:, 0])
        board = board._replace(cache=cache).commit(token_B[:, None], loops_B[:, None], num_B, writer.end_ids_N)
        live_E1 = leavers.live_NS & board.active_B[row_E][:, None]
        before = leavers if writer.warm_start else None
        items, cache = engine.enter(board.cache, drawn_E1, leavers.positions_NS + 1, live_E1, row_E, before)
        return board._replace(cache=cache, items=board.items.put(row_E, items))
