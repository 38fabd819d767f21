"""Put units together: leave out copies, choose the side of every document, bring them into order, write.

In memory are 44 bytes a document and the tokens of some thousand documents. The order of a shuffle is a permutation
that is computed (`index.permute`), and units are read by position, so nothing else grows with the data.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from looplm.data.build.plan import Done
from looplm.data.build.report import WHOLE
from looplm.data.build.unit import ROW, mask_start, rows_start
from looplm.data.index import permute
from looplm.data.place import Place
from looplm.data.shard import FolderWriter

PLACED_ROW = np.dtype([*((name, ROW[name]) for name in ROW.names or ()), ("unit", "<u4")])
_BITS = np.dtype(">u8")
_MAX_DOCUMENTS, _MAX_TOKENS = 1 << 14, 1 << 22
"""Written together."""
_TABLES_TOGETHER = 256
"""Tables of documents that are read at the same time."""


class Documents:
    """All documents of a build, in the order of the input."""

    def __init__(self, place: Place, done: Sequence[Done], dtype: np.dtype, *, has_mask: bool) -> None:
        """Read their tables. `dtype` is of a token in the units of the groups that are done."""
        self.place, self.dtype, self.has_mask = place, dtype, has_mask
        units = [(group.unit(number), info) for group in done for number, info in enumerate(group.units)]
        first_sources = np.cumsum([0, *(len(group.sources) for group in done)]).tolist()
        offsets = [first for group, first in zip(done, first_sources, strict=False) for _ in group.units]
        self.units = [name for name, _ in units]
        self.mask_starts = [mask_start(info, dtype) for _, info in units]
        """The byte of a unit at which its loss mask begins."""
        tables: list[np.ndarray] = []
        for start in range(0, len(units), _TABLES_TOGETHER):
            some = units[start : start + _TABLES_TOGETHER]
            found = [np.empty(info.num_documents, ROW) for _, info in some]
            starts = [rows_start(info, dtype, has_mask=has_mask) for _, info in some]
            place.read_into([(name, at, rows) for (name, _), at, rows in zip(some, starts, found, strict=True)])
            for number, rows in enumerate(found, start):
                table = np.empty(rows.size, PLACED_ROW)
                for name in ROW.names or ():
                    table[name] = rows[name]
                table["source"] += offsets[number]
                table["unit"] = number
                tables.append(table)
        self.table = np.concatenate([np.empty(0, PLACED_ROW), *tables])

    def keep_first_copies(self) -> int:
        """Drop every document whose text was there before; return how many."""
        digests = np.ascontiguousarray(self.table["digest"]).view("<u8").reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the first copy comes first
        is_copy = np.zeros(order.size, bool)
        is_copy[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        self.table = self.table[~is_copy]
        return int(is_copy.sum())

    def sides(self, validation_fraction: float) -> dict[str, np.ndarray]:
        """Return the table of every dataset: the side of a document depends on the first 64 bits of its digest."""
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
    documents: Documents,
    table: np.ndarray,
    *,
    shuffle_seed: int | None,
    progress: Callable[[int], None],
) -> None:
    """Append the documents of `table` to `writer`, in order, or shuffled by `shuffle_seed`.

    `progress` is called with the number of tokens written since the last call.
    """
    for rows in _batches(table, shuffle_seed):
        tokens = np.empty(int(rows["num_tokens"].sum(dtype=np.int64)), documents.dtype)
        mask = np.empty(tokens.size, np.uint8) if documents.has_mask else None
        documents.place.read_into(list(_spans(documents, rows, tokens, mask)))
        writer.add(
            tokens.astype(writer.dtype, copy=False),
            lengths=rows["num_tokens"],
            num_bytes=rows["num_bytes"],
            sources=np.stack([rows["source"], rows["record"]], axis=1),
            mask=mask,
        )
        progress(tokens.size)


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


def _spans(
    documents: Documents, rows: np.ndarray, tokens: np.ndarray, mask: np.ndarray | None
) -> Iterator[tuple[str, int, np.ndarray]]:
    """What fills `tokens` and `mask` with the documents of `rows`, for `Place.read_into`; neighbours go together."""
    start, num_tokens, unit = (rows[name].astype(np.int64) for name in ("start", "num_tokens", "unit"))
    is_next = (unit[1:] == unit[:-1]) & (start[1:] == start[:-1] + num_tokens[:-1])
    firsts = np.flatnonzero(np.concatenate([[True], ~is_next]))
    sizes = np.add.reduceat(num_tokens, firsts)
    place = 0
    for number, first, count in zip(unit[firsts].tolist(), start[firsts].tolist(), sizes.tolist(), strict=True):
        name = documents.units[number]
        yield name, first * documents.dtype.itemsize, tokens[place : place + count]
        if mask is not None:
            yield name, documents.mask_starts[number] + first, mask[place : place + count]
        place += count
