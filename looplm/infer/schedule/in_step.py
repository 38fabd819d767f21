"""All rows in step: one token of every row, loop by loop, until the last of them has left."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.infer.board import Board
from looplm.infer.items import Items
from looplm.infer.schedule.scheduler import Writer
from looplm.model.cache import Cache


@dataclass(frozen=True)
class InStep:
    """Cheapest where all tokens run all loops: no loop looks up where a row is."""

    def empty(self, writer: Writer, batch_size: int, board: Board) -> Items:
        return writer.engine.none(None, batch_size)

    def start(self, writer: Writer, board: Board) -> Board:
        return board

    def tick(self, writer: Writer, board: Board) -> Board:
        """Write one token of every row."""
        engine, live_B1 = writer.engine, board.active_B[:, None]
        position_B = board.length_B - 1
        before = board.items if writer.warm_start else None
        items, cache = engine.enter(
            board.cache, board.token_at(position_B)[:, None], position_B[:, None], live_B1, before=before
        )

        def goes_on(at: tuple[jax.Array, Items, Cache, jax.Array]) -> jax.Array:
            return jnp.any(at[1].live_NS & ~engine.left(at[1]))

        def advance(at: tuple[jax.Array, Items, Cache, jax.Array]) -> tuple:
            ran, items, cache, used = at
            used += jnp.sum(items.live_NS & ~engine.left(items))
            return ran + 1, *engine.advance(cache, items, together=True), used

        zero = jnp.int32(0)
        ran, items, cache, used = jax.lax.while_loop(goes_on, advance, (zero, items, cache, zero))
        logits_B1V, cache = engine.leave(cache, items)
        token_B1 = writer.draw(board, logits_B1V, jnp.arange(live_B1.shape[0]), items.positions_NS)
        board = board._replace(
            cache=cache,
            items=items if writer.warm_start else board.items,
            counts=board.counts.add(ticks=ran, slots=ran * live_B1.shape[0], used=used),
        )
        return board.commit(token_B1, engine.loops(items), live_B1[:, 0].astype(jnp.int32), writer.end_ids_N)
