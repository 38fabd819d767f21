"""Cut the token stream of a dataset into windows of S tokens, by index arithmetic.

Window i holds tokens i*S .. i*S+S-1, whatever documents they belong to; segments keep the documents apart, and nothing
is dropped, packed or remembered. Deliberately absent: the order of windows (`index`) and batches (`loader`).
"""

import numpy as np

from looplm.data.dataset import TokenDataset
from looplm.errors import UserError

IGNORED = -100
"""Label of a position that is not scored."""


def num_windows(dataset: TokenDataset, sequence_length: int, *, complete_only: bool) -> int:
    """Return how many windows of `sequence_length` tokens the dataset has.

    Training (`complete_only`) takes windows whose every token has a successor in the stream: S + 1 tokens. Evaluation
    takes all: each token is in exactly one window, the last of which is padded.
    """
    if complete_only:
        return (dataset.num_tokens - 1) // sequence_length
    return -(-dataset.num_tokens // sequence_length)


def read_windows(dataset: TokenDataset, window_ids_B: np.ndarray, sequence_length: int) -> dict[str, np.ndarray]:
    """Read windows as int32 arrays (B, S). A window past the end of the stream is padding.

    tokens     the window; 0 where padded
    labels     the next token; -100 where it belongs to another document, does not exist, or the token is padding
    segments   number of the document within the window, from 1; 0 where padded
    positions  distance from the start of the document, or of the window if that is later
    documents  number of the document in the dataset; -1 where padded

    Raises UserError for a token that is not below the manifest's vocabulary size, which JAX would clamp silently.
    """
    ids_B = np.asarray(window_ids_B, np.int64)
    num_rows, num_columns = ids_B.size, sequence_length + 1  # one more column for the last label
    first_B = ids_B * sequence_length
    count_B = np.clip(dataset.num_tokens - first_B, 0, num_columns)

    stream_BS = np.zeros((num_rows, num_columns), np.int32)
    for row, (first, count) in enumerate(zip(first_B.tolist(), count_B.tolist(), strict=True)):
        if count:
            stream_BS[row, :count] = dataset.tokens(first, first + count)
    _check_range(dataset, stream_BS, ids_B)

    column_S = np.arange(num_columns, dtype=np.int32)
    real_BS = column_S < count_B[:, None]
    starts_BS, first_document_B = _document_starts(dataset, first_B, count_B, num_columns)
    # Documents are not empty, so every start in the window is the next document.
    number_BS = np.cumsum(starts_BS, axis=1, dtype=np.int32)
    positions_BS = column_S - np.maximum.accumulate(np.where(starts_BS, column_S, 0), axis=1)
    next_is_same_BS = real_BS[:, 1:] & ~starts_BS[:, 1:]

    real_BS, number_BS = real_BS[:, :-1], number_BS[:, :-1]
    return {
        "tokens": np.where(real_BS, stream_BS[:, :-1], 0),
        "labels": np.where(next_is_same_BS, stream_BS[:, 1:], IGNORED),
        "segments": np.where(real_BS, number_BS + 1, 0),
        "positions": np.where(real_BS, positions_BS[:, :-1], 0),
        "documents": np.where(real_BS, first_document_B[:, None] + number_BS, -1),
    }


def _document_starts(
    dataset: TokenDataset, first_B: np.ndarray, count_B: np.ndarray, num_columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mark the documents that start after the first column, (B, columns) bool, and give the first column's document."""
    offsets = dataset.document_offsets
    # In the offsets' own type: searchsorted would otherwise convert the whole mapped file at every call.
    last_B = first_B + np.maximum(count_B, 1) - 1
    first_document_B = np.searchsorted(offsets, first_B.astype(offsets.dtype), side="right") - 1
    last_document_B = np.searchsorted(offsets, last_B.astype(offsets.dtype), side="right") - 1
    starts_BS = np.zeros((first_B.size, num_columns), bool)
    for row in np.flatnonzero((last_document_B > first_document_B) & (count_B > 0)):
        starts = offsets[first_document_B[row] + 1 : last_document_B[row] + 1].astype(np.int64) - first_B[row]
        starts_BS[row, starts] = True
    return starts_BS, first_document_B.astype(np.int32)


def _check_range(dataset: TokenDataset, stream_BS: np.ndarray, ids_B: np.ndarray) -> None:
    # Negative ids too: a uint32 above 2**31 - 1 became one.
    bad_BS = stream_BS.view(np.uint32) >= dataset.vocab_size
    if bad_BS.any():
        row = int(np.flatnonzero(bad_BS.any(axis=1))[0])
        value = int(stream_BS.view(np.uint32)[row][bad_BS[row]][0])
        raise UserError(
            f"dataset {dataset.path} holds token {value} in window {ids_B[row]}, which is not below its vocabulary of "
            f"{dataset.vocab_size}: the file is damaged; build the dataset again"
        )
