"""Windows that hold whole documents: best-fit packing, computed once and kept as files.

A document is cut only where it is longer than a window: into full windows and a remainder. Remainders and shorter
documents, longest first, go where the least room is left that is enough (best fit decreasing; used for language models
in arXiv 2404.10830). That happens within blocks of a million documents, so memory does not grow with the dataset, and
the files depend on the dataset and S alone. Deliberately absent: reading with cuts anywhere (`window`).
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from looplm.data.dataset import TokenDataset
from looplm.data.window import IGNORED, DatasetWindows, check_range, copy_labelled, in_runs
from looplm.errors import UserError

BLOCK_DOCUMENTS = 1 << 20
FILES: dict[str, np.dtype] = {"windows": np.dtype("<i8"), "starts": np.dtype("<i8"), "lengths": np.dtype("<i4")}
"""First piece of every window, then the number of pieces; first token and number of tokens of every piece."""


class Packing(NamedTuple):
    """What every window holds."""

    windows: np.ndarray
    """First piece of every window, then the number of pieces: (windows + 1,) int64."""
    starts: np.ndarray
    """First token of every piece, (pieces,) int64."""
    lengths: np.ndarray
    """Tokens of every piece, (pieces,) int32."""


def best_fit(lengths_N: np.ndarray, capacity: int) -> np.ndarray:
    """Pack things into as few bins as best fit decreasing needs; returns the bin of every one, (N,) int64.

    Things of one length are placed together: the bin with the least room that is enough takes them until it has none.
    Lengths are 1..capacity.
    """
    order = np.argsort(-lengths_N, kind="stable")
    bins = np.empty(len(lengths_N), np.int64)
    room: dict[int, list[np.ndarray]] = {}
    # Which amounts of room there are, as the bits of a number: the next one that is enough is a few operations away.
    rooms = num_bins = begin = stop = 0
    sizes, counts = np.unique(lengths_N, return_counts=True)
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        stop += count
        while begin < stop:
            if enough := rooms >> size:
                left = size + (enough & -enough).bit_length() - 1
                open_bins = np.concatenate(room.pop(left))
                rooms ^= 1 << left
            else:
                left = capacity
                open_bins = np.arange(num_bins, num_bins + -(-(stop - begin) // (capacity // size)))
                num_bins += len(open_bins)
            each = left // size
            used, rest = divmod(min(stop - begin, each * len(open_bins)), each)
            placed = np.repeat(open_bins[: used + (rest > 0)], each)[: used * each + rest]
            bins[order[begin : begin + placed.size]] = placed
            begin += placed.size
            groups = ((left - each * size, open_bins[:used]), (left - rest * size, open_bins[used : used + (rest > 0)]))
            for after, group in (*groups, (left, open_bins[used + (rest > 0) :])):
                if after and group.size:
                    room.setdefault(after, []).append(group)
                    rooms |= 1 << after
    return bins


def pack_documents(offsets: np.ndarray, sequence_length: int) -> Iterator[Packing]:
    """Pack the documents between `offsets`, (N + 1,), block by block; every block counts its own pieces."""
    S = sequence_length
    for first in range(0, len(offsets) - 1, BLOCK_DOCUMENTS):
        edges = offsets[first : first + BLOCK_DOCUMENTS + 1].astype(np.int64)
        # A document's pieces are full but for the last, which is empty where S divides the document.
        full, rest = np.divmod(np.diff(edges), S)
        document = np.repeat(np.arange(full.size), full)
        place = np.arange(document.size) - (np.cumsum(full) - full)[document]
        whole = edges[document] + place * S
        short = np.flatnonzero(rest)
        bins = best_fit(rest[short], S)
        order = np.argsort(bins, kind="stable")
        counts = np.bincount(bins) if bins.size else np.zeros(0, np.int64)
        yield Packing(
            np.concatenate([np.arange(whole.size), whole.size + np.cumsum(counts) - counts]),
            np.concatenate([whole, (edges[:-1] + full * S)[short][order]]),
            np.concatenate([np.full(whole.size, S, np.int32), rest[short][order].astype(np.int32)]),
        )


class PackedWindows(DatasetWindows):
    """The windows of a dataset by best-fit packing; each piece is a segment, and positions count from its start."""

    def __init__(self, dataset: TokenDataset, sequence_length: int, cache: Path) -> None:
        """Read the packing from `cache`, or compute it and keep it there. Raises UserError when that cannot be done."""
        super().__init__(dataset, sequence_length)
        self.folder = cache / "packing" / f"best_fit-{dataset.fingerprint[:16]}-{sequence_length}"
        if not self.folder.is_dir():
            try:
                _write(self.folder, pack_documents(dataset.document_offsets, sequence_length))
            except OSError as error:
                raise UserError(
                    f"cannot keep the packing in {self.folder}: {error.strerror}; set data.cache_dir to a folder that "
                    "can be written"
                ) from error
        self.packing = self._load()
        num_pieces = {self.packing.starts.size, self.packing.lengths.size}
        if len(self) == 0 or num_pieces != {int(self.packing.windows[-1])}:
            raise UserError(f"the packing {self.folder} is damaged; remove that folder, and it will be made again")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "packing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.packing = self._load()

    def __len__(self) -> int:
        return len(self.packing.windows) - 1

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        ids_B = np.asarray(window_ids_B, np.int64)
        B, S = ids_B.size, self.sequence_length
        tokens_BS, labels_BS = np.zeros((B, S), np.int32), np.full((B, S), IGNORED, np.int32)
        windows, dataset = self.packing.windows, self.dataset
        first_B, count_B = windows[ids_B], windows[ids_B + 1] - windows[ids_B]
        row_N = np.repeat(np.arange(B), count_B)
        number_N = np.arange(row_N.size) - (np.cumsum(count_B) - count_B)[row_N]
        piece_N = first_B[row_N] + number_N
        start_N, length_N = self.packing.starts[piece_N], self.packing.lengths[piece_N].astype(np.int64)
        column_N = np.cumsum(length_N) - length_N
        column_N -= column_N[np.searchsorted(row_N, row_N)]
        stop_N = start_N + length_N
        # A piece as long as the window may be cut from a longer document, where its last token has a label.
        full_N = np.flatnonzero(length_N == S)
        offsets = dataset.document_offsets
        ends = stop_N[full_N].astype(offsets.dtype)
        stop_N[full_N] += offsets[np.searchsorted(offsets, ends)] != ends
        pieces = dataset.read_many(start_N, stop_N)
        for row, column, (stream, mask) in zip(row_N.tolist(), column_N.tolist(), pieces, strict=True):
            copy_labelled(stream, mask, tokens_BS[row, column:], labels_BS[row, column:])
        check_range(dataset, tokens_BS, labels_BS, ids_B)

        filled_B = np.bincount(row_N, length_N, minlength=B).astype(np.int64)
        padded_B = np.flatnonzero(filled_B < S)
        run_N = np.concatenate([row_N * S + column_N, padded_B * S + filled_B[padded_B]])
        segment_N = np.concatenate([number_N + 1, 0 * padded_B])
        order = np.argsort(run_N, kind="stable")
        return {"tokens": tokens_BS, "labels": labels_BS} | in_runs(run_N[order], segment_N[order], (B, S))

    def _load(self) -> Packing:
        try:
            arrays = {
                name: np.memmap(self.folder / f"{name}.bin", dtype, mode="r").view(np.ndarray)
                for name, dtype in FILES.items()
            }
        except (OSError, ValueError) as error:
            raise UserError(
                f"the packing {self.folder} is damaged ({error}); remove that folder, and it will be made again"
            ) from error
        return Packing(**arrays)


def _write(folder: Path, blocks: Iterator[Packing]) -> None:
    """Write all blocks into `folder`, all of it or nothing; another process may do the same at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        staging.chmod(0o755)
        num_pieces = 0
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((staging / f"{name}.bin").open("wb")) for name in FILES}
            for block in blocks:
                shifted = block._replace(windows=block.windows + num_pieces)
                for name, dtype in FILES.items():
                    files[name].write(getattr(shifted, name).astype(dtype).tobytes())
                num_pieces += block.lengths.size
            files["windows"].write(np.array([num_pieces], FILES["windows"]).tobytes())
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
