"""A queue of prompts on a board with fewer rows: whoever ends makes room for the next."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.infer.board import Board, Counts
from looplm.infer.continuation import Written
from looplm.infer.program import Plan, empty_board, take_up, write
from looplm.infer.sampling import Sampling
from looplm.model.functional import FunctionalLM, Params

PROMPT_MULTIPLE = 32
"""Prompts are padded to a power of two of these, so that few programs are compiled."""
FEW_ROWS = 4
"""Prompts that are taken up together once most rows are busy."""
WHOLE = 2**30
CHUNK = 16
"""Ticks after which somebody who watches looks again."""


class Request(NamedTuple):
    """A prompt that waits."""

    ids: np.ndarray
    """(num_tokens,) int32."""
    max_tokens: int
    stream: int
    """Number of its random stream."""


Watch = Callable[[int, np.ndarray], int | None]
"""Called with a request's number and its tokens so far; returns how many of them it ends with, or None to go on."""


class Queue:
    """Writes what follows every request."""

    def __init__(
        self,
        lm: FunctionalLM,
        params: Params,
        plan: Plan,
        sampling: Sampling,
        end_ids: Sequence[int],
        *,
        watch: Watch | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """watch: told of what is new every `chunk` ticks; see `Watch`."""
        self._lm, self._params, self._plan, self._sampling = lm, params, plan, sampling
        self._end_ids, self._watch, self._chunk = jnp.asarray(end_ids, jnp.int32), watch, chunk
        self.counts = Counts.zero()
        """What was computed, once all is written."""

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Yield (number of a request, what was written) as they end."""
        plan = self._plan
        waiting, rows = deque(enumerate(requests)), dict[int, int]()
        board = empty_board(self._lm, plan, self._params)
        while waiting or rows:
            while waiting and len(rows) < plan.batch_size:
                board = self._take_up(board, requests, waiting, rows)
            # Where nobody waits, rows that have ended make room for nobody.
            board = write(
                self._lm, plan, self._params, board, self._sampling, self._end_ids,
                WHOLE if self._watch is None else self._chunk, bool(waiting),
            )  # fmt: skip
            active_B = np.asarray(board.active_B)
            if self._watch is None and active_B.all() and rows:
                continue
            length_B, tokens_BT, loops_BT = jax.device_get((board.length_B, board.tokens_BT, board.loops_BT))
            closed_B = np.zeros(plan.batch_size, bool)
            for row, number in list(rows.items()):
                new = slice(len(requests[number].ids), int(length_B[row]))
                kept = self._watch(number, tokens_BT[row, new]) if self._watch else None
                if kept is None and active_B[row]:
                    continue
                ends = new if kept is None else slice(new.start, new.start + kept)
                closed_B[row] = True
                del rows[row]
                yield number, Written(tokens_BT[row, ends].copy(), loops_BT[row, ends].copy())
            board = board._replace(ended_B=board.ended_B | closed_B)
        self.counts = jax.tree.map(int, jax.device_get(board.counts))

    def _take_up(self, board: Board, requests: Sequence[Request], waiting: deque, rows: dict[int, int]) -> Board:
        """Give free rows to those that wait."""
        B, T = self._plan.batch_size, self._plan.num_places
        free = [row for row in range(B) if row not in rows]
        most = B if min(len(free), len(waiting)) > min(B, FEW_ROWS) else min(B, FEW_ROWS)
        taken = [(row, *waiting.popleft()) for row, _ in zip(free, range(min(most, len(waiting))), strict=False)]
        longest = max(len(request.ids) for _, _, request in taken)
        tokens_GP = np.zeros((most, padded(longest, T)), np.int32)
        row_G, length_G, room_G = np.full(most, B, np.int32), np.ones(most, np.int32), np.ones(most, np.int32)
        stream_G = np.zeros(most, np.uint32)
        for place, (row, number, request) in enumerate(taken):
            rows[row] = number
            tokens_GP[place, : len(request.ids)] = request.ids
            row_G[place], length_G[place], stream_G[place] = row, len(request.ids), request.stream
            room_G[place] = len(request.ids) + request.max_tokens
        arrays = map(jnp.asarray, (row_G, tokens_GP, length_G, room_G, stream_G))
        return take_up(self._lm, self._plan, self._params, board, self._sampling, self._end_ids, *arrays)


def padded(length: int, most: int) -> int:
    """Return the length to which prompts of this length are padded: 1, or a power of two of PROMPT_MULTIPLE."""
    if length == 1:
        return 1
    size = PROMPT_MULTIPLE
    while size < length:
        size *= 2
    return min(size, most)
