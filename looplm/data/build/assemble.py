"""Put units together: leave out copies, choose the part of every document, bring them into order, write.

In memory are 44 bytes a document and the tokens of some thousand documents. The order of a shuffle is a permutation
that is computed (`index.permute`), and units are read by position, so nothing else grows with the data.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from looplm.data.build.plan import Done, Group
from looplm.data.build.report import WHOLE
from looplm.data.build.unit import ROW, read_rows
from looplm.data.index import permute
from looplm.data.shard import FolderWriter

PLACED_ROW = np.dtype([*((name, ROW[name]) for name in ROW.names or ()), ("unit", "<u4")])
_BITS = np.dtype(">u8")
_MAX_OPEN = 256
_MAX_DOCUMENTS, _MAX_TOKENS = 1 << 14, 1 << 22
"""Written together."""


class Documents:
    """All documents of a build, in the order of the input."""

    def __init__(self, groups: Sequence[Group], done: Sequence[Done]) -> None:
        self.units: list[Path] = []
        tables: list[np.ndarray] = []
        first_source = 0
        for group, state in zip(groups, done, strict=True):
            for number in range(state.num_units):
                rows = read_rows(group.unit(number))
                table = np.empty(rows.size, PLACED_ROW)
                for name in ROW.names or ():
                    table[name] = rows[name]
                table["source"] += first_source
                table["unit"] = len(self.units)
                tables.append(table)
                self.units.append(group.unit(number))
            first_source += len(group.files)
        self.table = np.concatenate([np.empty(0, PLACED_ROW), *tables])

    def keep_first_copies(self) -> int:
        """Drop every document whose text was there before; return how many."""
        digests = np.ascontiguousarray(self.table["digest"]).view("<u8").reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the first copy comes first
        is_copy = np.zeros(order.size, bool)
        is_copy[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        self.table = self.table[~is_copy]
        return int(is_copy.sum())

    def parts(self, validation_fraction: float) -> dict[str, np.ndarray]:
        """Return the table of every part: the side of a document depends on the first 64 bits of its digest."""
        if validation_fraction == 0.0:
            return {WHOLE: self.table}
        is_held_out = _held_out(np.ascontiguousarray(self.table["digest"]).view(_BITS)[::2], validation_fraction)
        return {"train": self.table[~is_held_out], "validation": self.table[is_held_out]}


def held_out_side(sha256: bytes, fraction: float) -> bool:
    """Return whether a document with this digest is held out."""
    return bool(_held_out(np.frombuffer(sha256[:8], _BITS), fraction)[0])


def _held_out(first_64_bits: np.ndarray, fraction: float) -> np.ndarray:
    return first_64_bits < np.uint64(int(fraction * 2.0**64))


def write_documents(
    writer: FolderWriter,
    units: Sequence[Path],
    table: np.ndarray,
    *,
    unit_dtype: np.dtype,
    has_mask: bool,
    shuffle_seed: int | None,
    progress: Callable[[int], None],
) -> None:
    """Append the documents of `table` to `writer`, in order, or shuffled by `shuffle_seed`.

    `progress` is called with the number of tokens written since the last call.
    """
    reader = _UnitReader(units, unit_dtype)
    try:
        for rows in _batches(table, shuffle_seed):
            tokens = np.empty(int(rows["num_tokens"].sum(dtype=np.int64)), unit_dtype)
            mask = np.empty(tokens.size, np.uint8) if has_mask else None
            reader.read(rows, tokens, mask)
            writer.add(
                tokens.astype(writer.dtype, copy=False),
                lengths=rows["num_tokens"],
                num_bytes=rows["num_bytes"],
                sources=np.stack([rows["source"], rows["record"]], axis=1),
                mask=mask,
            )
            progress(tokens.size)
    finally:
        reader.close()


def _batches(table: np.ndarray, shuffle_seed: int | None) -> Iterator[np.ndarray]:
    for start in range(0, table.size, _MAX_DOCUMENTS):
        places = np.arange(start, min(start + _MAX_DOCUMENTS, table.size))
        if shuffle_seed is not None:
            places = permute(places, table.size, shuffle_seed)
        rows = table[places]
        ends = np.cumsum(rows["num_tokens"], dtype=np.int64)
        begin = 0
        while begin < rows.size:
            before = int(ends[begin - 1]) if begin else 0
            end = max(int(np.searchsorted(ends, before + _MAX_TOKENS, side="right")), begin + 1)
            yield rows[begin:end]
            begin = end


class _UnitReader:
    """Reads documents of units by position; holds some files open."""

    def __init__(self, units: Sequence[Path], dtype: np.dtype) -> None:
        self._units, self._dtype = units, dtype
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def read(self, rows: np.ndarray, tokens: np.ndarray, mask: np.ndarray | None) -> None:
        """Fill `tokens` and `mask` with the documents of `rows`; neighbours are read together."""
        start, num_tokens, unit = (rows[name].astype(np.int64) for name in ("start", "num_tokens", "unit"))
        is_next = (unit[1:] == unit[:-1]) & (start[1:] == start[:-1] + num_tokens[:-1])
        firsts = np.flatnonzero(np.concatenate([[True], ~is_next]))
        sizes = np.add.reduceat(num_tokens, firsts)
        place, size = 0, self._dtype.itemsize
        for unit_number, first, count in zip(
            unit[firsts].tolist(), start[firsts].tolist(), sizes.tolist(), strict=True
        ):
            file, mask_start = self._file(unit_number)
            _read_into(file, tokens[place : place + count], first * size)
            if mask is not None:
                _read_into(file, mask[place : place + count], mask_start + first)
            place += count

    def close(self) -> None:
        for file, _ in self._open.values():
            os.close(file)

    def _file(self, number: int) -> tuple[int, int]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1][0])
        file = os.open(self._units[number], os.O_RDONLY)
        footer = os.pread(file, 32, os.fstat(file).st_size - 32)
        self._open[number] = (file, int.from_bytes(footer[:8], "little"))
        return self._open[number]


def _read_into(file: int, array: np.ndarray, offset: int) -> None:
    view = array.data.cast("B")
    while view:
        count = os.preadv(file, [view], offset)
        if count == 0:
            raise RuntimeError("a unit file is shorter than its table says")
        view, offset = view[count:], offset + count
