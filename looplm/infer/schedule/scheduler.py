"""What a scheduler is."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from looplm.infer.board import Board
from looplm.infer.items import Engine
from looplm.infer.sampling import Sampling


@dataclass(frozen=True)
class Writer:
    """An engine with how its logits become tokens."""

    engine: Engine
    sampling: Sampling
    end_ids_N: jax.Array
    warm_start: bool = False
    """Whether a token starts from the last state of the token before it."""

    def draw(self, board: Board, logits_NSV: jax.Array, rows_N: jax.Array, positions_NS: jax.Array) -> jax.Array:
        """Draw what follows the tokens at these positions, (N, S) int32."""
        N, S, V = logits_NSV.shape
        rows = jnp.repeat(rows_N, S)
        drawn = self.sampling.draw(
            logits_NSV.reshape(N * S, V), board.stream_B[rows], positions_NS.reshape(-1) + 1, board.tokens_BT[rows]
        )
        return drawn.reshape(N, S)


class Scheduler(Protocol):
    """A way to write; hashable, since programs are compiled for it. Its methods are pure functions of the board."""

    def empty(self, writer: Writer, batch_size: int, board: Board) -> Any:
        """Make `Board.items` before the first tick; the board has none yet."""

    def start(self, writer: Writer, board: Board) -> Board:
        """Take up rows that are new on the board."""

    def tick(self, writer: Writer, board: Board) -> Board:
        """Do the least that brings rows further."""
