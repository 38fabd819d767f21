"""Wavefront decoding (arXiv 2609.23033): while a token runs its loops, what it predicts after the first few of them is
on its way already, and so on; a row is a diagonal of positions and loops, all of which advance in one call.

A token that has run all loops says what really follows it. Where that is what was drafted, the row goes on; else all
that was built on the draft is thrown away, and the row starts again from what is right.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.infer.board import Board
from looplm.infer.items import Items
from looplm.infer.schedule.scheduler import Writer


@dataclass(frozen=True)
class Wavefront:
    """A tick is one loop of every item. A row has ceil(num_loops / loops) groups of one item, by position."""

    loops: int
    """After how many loops a token is drafted from."""

    def width(self, num_loops: int) -> int:
        """Return how many items of a row are on their way at most."""
        return -(-num_loops // self.loops)

    def empty(self, writer: Writer, batch_size: int, board: Board) -> Items:
        row_N = jnp.repeat(jnp.arange(batch_size), self.width(writer.engine.num_loops))
        return writer.engine.none(row_N, batch_size)

    def start(self, writer: Writer, board: Board) -> Board:
        """Enter the last certain token of every row that has none on its way."""
        waits_B = board.active_B & ~jnp.any(self._by_row(board, board.items.live_NS), axis=1)
        return self._enter(writer, board, board.length_B - 1, waits_B)

    def tick(self, writer: Writer, board: Board) -> Board:
        """Run one loop of every item; then verify, then draft."""
        engine = writer.engine
        used = jnp.sum(board.items.live_NS)
        items, cache = engine.advance(board.cache, board.items)
        counts = board.counts.add(ticks=1, slots=items.positions_NS.shape[0], used=used)
        board = board._replace(cache=cache, items=items, counts=counts)
        by_row = self._by_row(board, items.live_NS & engine.left(items))
        drafts = self._by_row(board, items.live_NS & (items.number_N == self.loops)[:, None])
        return jax.lax.cond(
            jnp.any(by_row | drafts),
            lambda board: self._read(writer, board, by_row, drafts),
            lambda board: board,
            board,
        )

    def _read(self, writer: Writer, board: Board, done_BW: jax.Array, early_BW: jax.Array) -> Board:
        """Read the items that have run all loops, and those that are drafted from: at most one of each a row."""
        engine, (batch_size, W) = writer.engine, done_BW.shape
        row_B = jnp.arange(batch_size)
        groups_2B = jnp.concatenate([row_B * W + jnp.argmax(flags_BW, axis=1) for flags_BW in (done_BW, early_BW)])
        has_2B = jnp.concatenate([jnp.any(done_BW, axis=1), jnp.any(early_BW, axis=1)])
        read = board.items.take(groups_2B)
        read = read._replace(live_NS=read.live_NS & has_2B[:, None])
        logits_21V, cache = engine.leave(board.cache, read)
        drawn_2B = writer.draw(board, logits_21V, read.rows_N, read.positions_NS)[:, 0]
        position_2B = read.positions_NS[:, 0]
        (done_B, early_B), (true_B, draft_B), (_, early_position_B) = (
            jnp.split(x_2B, 2) for x_2B in (has_2B, drawn_2B, position_2B)
        )

        drafted_B = board.token_at(board.length_B)
        is_next_N1 = board.items.positions_NS == board.length_B[board.items.rows_N][:, None]
        follows_B = jnp.any(self._by_row(board, board.items.live_NS & is_next_N1), axis=1)
        agrees_B = drafted_B == true_B
        wrong_B = done_B & follows_B & ~agrees_B
        counts = board.counts.add(drafted=jnp.sum(done_B & follows_B), accepted=jnp.sum(done_B & follows_B & agrees_B))
        loops_B1 = jnp.full((batch_size, 1), engine.num_loops)
        board = board._replace(cache=cache, counts=counts).commit(
            true_B[:, None], loops_B1, done_B.astype(jnp.int32), writer.end_ids_N
        )

        # The verified item is through; of a row that went astray, or has ended, nothing is left.
        live_N1 = board.items.live_NS & ~done_BW.reshape(-1, 1)
        live_N1 &= (board.active_B & ~wrong_B)[board.items.rows_N][:, None]
        board = board._replace(items=board.items._replace(live_NS=live_N1))

        # Goes on from the draft, where there is one that may go on, else from what is certain, where nothing else does.
        next_B = early_position_B + 1
        drafts_B = early_B & board.active_B & ~wrong_B & (next_B + 1 < board.room_B)
        drafts_B &= ~jnp.any(draft_B[:, None] == writer.end_ids_N, axis=1)
        tokens_BT = board.tokens_BT.at[row_B, jnp.where(drafts_B, next_B, board.tokens_BT.shape[1])].set(
            draft_B, mode="drop"
        )
        waits_B = board.active_B & ~jnp.any(self._by_row(board, live_N1), axis=1)
        board = board._replace(tokens_BT=tokens_BT)
        return self._enter(writer, board, jnp.where(waits_B, board.length_B - 1, next_B), waits_B | drafts_B)

    def _enter(self, writer: Writer, board: Board, position_B: jax.Array, wanted_B: jax.Array) -> Board:
        """Enter the tokens at these positions, one a row."""
        row_B, W = jnp.arange(position_B.shape[0]), self.width(writer.engine.num_loops)
        items, cache = writer.engine.enter(
            board.cache, board.token_at(position_B)[:, None], position_B[:, None], wanted_B[:, None], row_B
        )
        groups_B = jnp.where(wanted_B, row_B * W + position_B % W, row_B.shape[0] * W)
        return board._replace(cache=cache, items=board.items.put(groups_B, items))

    def _by_row(self, board: Board, flags_N1: jax.Array) -> jax.Array:
        return flags_N1.reshape(board.length_B.shape[0], -1)
