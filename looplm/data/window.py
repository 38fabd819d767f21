"""Cut the token stream of a dataset into windows of S tokens, by index arithmetic.

Window i holds tokens i*S .. i*S+S-1, whatever documents they belong to; segments keep the documents apart, and nothing
is dropped, packed or remembered. Deliberately absent: windows of whole documents (`packing`), the order of windows
(`index`) and batches (`loader`).
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Protocol

import numpy as np

from looplm.data.dataset import TokenDataset
from looplm.errors import UserError

IGNORED = -100
"""Label of a position that is not scored."""
PADDING = 0
"""Segment of a position that holds no token."""


class Readable(Protocol):
    """Windows that are known by their number."""

    def __len__(self) -> int: ...

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        """Read windows as int32 (B, S): tokens, labels, segments, positions; see `read_windows`.

        With `Windows.num_ids` also `ids`, (B,): which puzzle each is of.
        """


class Windows(Readable, Protocol):
    """What a source gives. Sent to other processes, so it pickles."""

    @property
    def fingerprint(self) -> str:
        """Equal means the same windows, token for token."""

    @property
    def vocab_size(self) -> int:
        """Every token is below this."""

    @property
    def padding(self) -> float:
        """Share of positions that hold no token, over all windows."""

    @property
    def num_ids(self) -> int:
        """Every id of a puzzle is below this; 0 where windows have none."""


def check_ids(name: str, windows: Windows, rows: int) -> None:
    """Raise UserError unless a table with so many rows for ids has one for every id; 0: there is no table."""
    if rows and not windows.num_ids:
        raise UserError(
            f"model.front.ids has a row for the id of every example, and those of {name} have none; set "
            "model.front.ids=null, or read records"
        )
    if rows and windows.num_ids > rows:
        raise UserError(
            f"model.front.ids.num_ids={rows} is below the {windows.num_ids} ids of {name}; set it to that or more"
        )


class DatasetWindows(ABC):
    """What all windows of a token dataset have in common."""

    num_ids = 0

    def __init__(self, dataset: TokenDataset, sequence_length: int) -> None:
        self.dataset, self.sequence_length = dataset, sequence_length

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        """See `Readable`."""

    @property
    def fingerprint(self) -> str:
        return self.dataset.fingerprint

    @property
    def vocab_size(self) -> int:
        return self.dataset.vocab_size

    @property
    def padding(self) -> float:
        return 1.0 - self.dataset.num_tokens / (len(self) * self.sequence_length)


class SplitWindows(DatasetWindows):
    """The windows of a dataset that have all their labels: S + 1 tokens of the stream each."""

    padding = 0.0

    def __init__(self, dataset: TokenDataset, sequence_length: int) -> None:
        """Raises UserError when there is no window."""
        super().__init__(dataset, sequence_length)
        if len(self) == 0:
            raise UserError(
                f"dataset {dataset.location} has {dataset.num_tokens} tokens, but a window of data.sequence_length="
                f"{sequence_length} needs {sequence_length + 1}; use at most {max(dataset.num_tokens - 1, 1)} or more "
                "text"
            )

    def __len__(self) -> int:
        return (self.dataset.num_tokens - 1) // self.sequence_length

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        return read_windows(self.dataset, window_ids_B, self.sequence_length)


class AllWindows(DatasetWindows):
    """The windows that hold every token of a dataset, each in exactly one; the last is padded. With documents."""

    def __len__(self) -> int:
        return (self.dataset.num_tokens - 1) // self.sequence_length + 1

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        return read_windows(self.dataset, window_ids_B, self.sequence_length, with_documents=True)


def read_windows(
    dataset: TokenDataset, window_ids_B: np.ndarray, sequence_length: int, *, with_documents: bool = False
) -> dict[str, np.ndarray]:
    """Read windows as int32 arrays (B, S). A window past the end of the stream is padding.

    tokens     the window; 0 where padded
    labels     the next token; -100 where it belongs to another document, is not to be learnt (loss mask), does not
               exist, or the token is padding
    segments   number of the document within the window, from 1; 0 where padded
    positions  distance from the start of the document, or of the window if that is later
    documents  number of the document in the dataset; -1 where padded (only when asked for)

    Raises UserError for a token that is not below the manifest's vocabulary size, which JAX would clamp silently.
    """
    S = sequence_length
    ids_B = np.asarray(window_ids_B, np.int64)
    B = ids_B.size
    first_B = ids_B * S
    # One token more than a window has, for the last label.
    count_B = np.clip(dataset.num_tokens - first_B, 0, S + 1)
    tokens_BS, labels_BS = np.empty((B, S), np.int32), np.empty((B, S), np.int32)
    if (count_B <= S).any():  # else every position is written
        tokens_BS[:], labels_BS[:] = 0, IGNORED
    for row, (stream, mask) in enumerate(dataset.read_many(first_B, first_B + count_B)):
        copy_labelled(stream, mask, tokens_BS[row], labels_BS[row])
    check_range(dataset, tokens_BS, labels_BS, ids_B)

    offsets = dataset.document_offsets
    # In the offsets' own type: searchsorted would otherwise convert the whole mapped file at every call.
    last_B = first_B + np.maximum(count_B, 1) - 1
    document_B = np.searchsorted(offsets, first_B.astype(offsets.dtype), side="right") - 1
    starts_B = np.searchsorted(offsets, last_B.astype(offsets.dtype), side="right") - 1 - document_B
    starts_B[count_B == 0] = 0
    # Every document that starts behind the first column, row by row: number in the window (from 1), and column.
    row_N = np.repeat(np.arange(B), starts_B)
    number_N = np.arange(1, row_N.size + 1) - (np.cumsum(starts_B) - starts_B)[row_N]
    column_N = offsets[document_B[row_N] + number_N].astype(np.int64) - first_B[row_N]
    labels_BS[row_N, column_N - 1] = IGNORED

    inside = column_N < S
    row_N, number_N, column_N = row_N[inside], number_N[inside], column_N[inside]
    padded_B = np.flatnonzero(count_B < S)
    windows_B = np.arange(B)
    runs = [(windows_B, 0 * windows_B, 0 * windows_B), (row_N, column_N, number_N)]
    if padded_B.size:
        runs.append((padded_B, count_B[padded_B], np.full(padded_B.size, -1)))
    row_N, column_N, number_N = (np.concatenate(part) for part in zip(*runs, strict=True))
    start_N = row_N * S + column_N
    order = np.argsort(start_N, kind="stable")
    batch = {"tokens": tokens_BS, "labels": labels_BS}
    batch |= in_runs(start_N[order], number_N[order] + 1, (B, S))
    if with_documents:
        document_N = np.where(number_N >= 0, document_B[row_N] + number_N, -1)
        lengths_N = np.diff(start_N[order], append=B * S)
        batch["documents"] = np.repeat(document_N[order].astype(np.int32), lengths_N).reshape(B, S)
    return batch


def copy_labelled(stream: np.ndarray, mask: np.ndarray | None, tokens_S: np.ndarray, labels_S: np.ndarray) -> None:
    """Copy a stretch of tokens to the front of a row, and each but the first, if it is to be learnt, as a label."""
    inside = stream[: tokens_S.size]
    tokens_S[: inside.size] = inside
    following = stream[1:]
    labels_S[: following.size] = following
    if mask is not None:
        labels_S[: following.size][mask[1:] == 0] = IGNORED


def in_runs(start_N: np.ndarray, segment_N: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Number the positions of a batch: segments and positions, (B, S) int32.

    Args:
        start_N: where runs of one segment start in the flat batch; ascending, every row starts one. A run of no length
            is passed over.
        segment_N: their segments; 0 is padding.
    """
    size = shape[0] * shape[1]
    lengths_N = np.diff(start_N, append=size)
    segments = np.repeat(segment_N.astype(np.int32), lengths_N)
    positions = np.repeat(start_N.astype(np.int32), lengths_N)
    # In place: fresh memory costs more than the arithmetic.
    np.subtract(_counting(size), positions, out=positions)
    if segment_N.size and segment_N.min() == 0:
        positions *= segments > 0
    return {"segments": segments.reshape(shape), "positions": positions.reshape(shape)}


@lru_cache(maxsize=8)
def _counting(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.int32)


def check_range(dataset: TokenDataset, tokens_BS: np.ndarray, labels_BS: np.ndarray, ids_B: np.ndarray) -> None:
    """Raise UserError for a token or label of window `ids_B[row]` that is not below the dataset's vocabulary size."""
    vocab_size = dataset.vocab_size
    if not tokens_BS.size or (max(tokens_BS.max(), labels_BS.max()) < vocab_size and tokens_BS.min() >= 0):
        return
    for values_BS in (tokens_BS, labels_BS):
        # Negative ids too: a uint32 above 2**31 - 1 became one.
        bad_BS = (values_BS.view(np.uint32) >= vocab_size) & (values_BS != IGNORED)
        for row in np.flatnonzero(bad_BS.any(axis=1)):
            raise UserError(
                f"dataset {dataset.location} holds token {values_BS.view(np.uint32)[row][bad_BS[row]][0]} in window "
                f"{ids_B[row]}, which is not below its vocabulary of {vocab_size}: the file is damaged; build the "
                "dataset again"
            )
