"""What a task is, and windows of its examples: as many as fit side by side, each a segment of its own."""

import hashlib
from typing import NamedTuple, Protocol

import numpy as np

from looplm.data.index import permute
from looplm.data.window import IGNORED
from looplm.errors import UserError


class Examples(NamedTuple):
    """Numbered examples of a task, side by side."""

    tokens_NL: np.ndarray
    """int32."""
    labels_NL: np.ndarray
    """The answer at every position, int32; -100 where nothing is asked."""
    lengths_N: np.ndarray
    """Tokens of every example; what follows them means nothing."""


class Task(Protocol):
    """A task of one size. Its examples are a function of their number, and equal tasks print alike."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def length(self) -> int:
        """Tokens of the longest example (L)."""

    @property
    def mean_length(self) -> float: ...

    @property
    def num_examples(self) -> int: ...

    def examples(self, index_N: np.ndarray) -> Examples: ...


class TaskWindows:
    """Windows of S tokens; each holds S div L examples in places of equal length."""

    num_ids = 0

    def __init__(self, task: Task, sequence_length: int, *, with_documents: bool = False) -> None:
        """`with_documents`: also give the number of every token's example. Raises UserError when none fits."""
        self.task, self.sequence_length, self.with_documents = task, sequence_length, with_documents
        if task.length > sequence_length:
            raise UserError(
                f"data.sequence_length={sequence_length} is too short for {task}: its examples have up to "
                f"{task.length} tokens; use at least that"
            )
        self._each = sequence_length // task.length

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.task!r} {self.sequence_length}".encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    @property
    def padding(self) -> float:
        return 1.0 - self.task.num_examples * self.task.mean_length / (len(self) * self.sequence_length)

    def __len__(self) -> int:
        return (self.task.num_examples - 1) // self._each + 1

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        """Read windows as `window.read_windows` gives them; examples that do not exist are padding."""
        ids_B = np.asarray(window_ids_B, np.int64)
        B, S, L = ids_B.size, self.sequence_length, self.task.length
        place_N = (ids_B[:, None] * self._each + np.arange(self._each)).reshape(-1)
        exists_N = place_N < self.task.num_examples
        # Neighbours in a window are not neighbours in the task, which may number its examples by kind.
        index_N = permute(np.where(exists_N, place_N, 0), self.task.num_examples, "places in windows")
        examples = self.task.examples(index_N)
        real_NL = (np.arange(L) < examples.lengths_N[:, None]) & exists_N[:, None]
        segment_NL = np.broadcast_to(np.tile(np.arange(1, self._each + 1), B)[:, None], real_NL.shape)
        columns = {
            "tokens": (examples.tokens_NL, 0),
            "labels": (examples.labels_NL, IGNORED),
            "segments": (segment_NL, 0),
            "positions": (np.broadcast_to(np.arange(L), real_NL.shape), 0),
        }
        if self.with_documents:
            columns["documents"] = (np.broadcast_to(index_N[:, None], real_NL.shape), -1)
        batch = {}
        for name, (values_NL, padding) in columns.items():
            batch[name] = np.full((B, S), padding, np.int32)
            batch[name][:, : self._each * L] = np.where(real_NL, values_NL, padding).reshape(B, -1)
        return batch


def next_token(sequences_NL: np.ndarray, answer_starts_N: np.ndarray, lengths_N: np.ndarray) -> Examples:
    """Ask for the end of every sequence, token by token: those from its `answer_starts_N` on, of `lengths_N` in all."""
    tokens_NL, labels_NL = sequences_NL[:, :-1].astype(np.int32), sequences_NL[:, 1:].astype(np.int32)
    target_L = np.arange(1, sequences_NL.shape[1])
    asked_NL = (target_L >= answer_starts_N[:, None]) & (target_L < lengths_N[:, None])
    return Examples(tokens_NL, np.where(asked_NL, labels_NL, IGNORED).astype(np.int32), lengths_N - 1)
