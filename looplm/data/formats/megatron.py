"""Token files of Megatron-LM: X.bin with the tokens, X.idx with their type and the borders of documents.

The index (version 1): magic, version (uint64), type (uint8), numbers of sequences and of document borders (uint64),
then the tokens of every sequence (int32), its place in bytes (int64), and the first sequence of every document (int64).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from looplm.data.formats.document import Piece
from looplm.data.formats.stream import Damaged, FileStream
from looplm.data.source import SourceFile

_MAGIC = b"MMIDIDX\x00\x00"
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_HEADER_BYTES = 34
_PIECE_BYTES = 8 << 20
_DOCUMENTS = 1 << 16
"""Borders that are looked at together."""


def read_megatron(stream: FileStream, file: SourceFile, source: int) -> Iterator[Piece]:
    """Yield whole documents, some megabytes at a time. Raises Damaged when index and tokens do not agree."""
    dtype, sizes, places, borders = _index(file.path.with_suffix(".idx"))
    if borders.size and not (borders[0] == 0 and borders[-1] == sizes.size):
        raise Damaged("its .idx does not put every sequence into a document")
    chunks, data, place = iter(stream), bytearray(), 0
    for start in range(0, borders.size - 1, _DOCUMENTS):
        part = np.array(borders[start : start + _DOCUMENTS + 1])
        if (np.diff(part) < 0).any():
            raise Damaged("the documents of its .idx are not in order")
        mine = np.array(sizes[part[0] : part[-1]], np.int64)
        ends = np.concatenate([[0], np.cumsum(mine)])
        if not np.array_equal(places[part[0] : part[-1]], place + ends[:-1] * dtype.itemsize):
            raise Damaged("the sequences of its .idx do not lie one after another")
        place += int(ends[-1]) * dtype.itemsize
        lengths = np.diff(ends[part - part[0]])
        yield from _pieces(chunks, data, lengths, dtype, source, start)
    if data or next(chunks, b""):
        raise Damaged("it is longer than its .idx says")


def _pieces(
    chunks: Iterator[bytes], data: bytearray, lengths: np.ndarray, dtype: np.dtype, source: int, first: int
) -> Iterator[Piece]:
    """Cut documents of these lengths from the stream."""
    done = 0
    while done < lengths.size:
        ends = np.cumsum(lengths[done:]) * dtype.itemsize
        count = max(int(np.searchsorted(ends, _PIECE_BYTES, side="right")), 1)
        size = int(ends[count - 1])
        while len(data) < size:
            if not (chunk := next(chunks, b"")):
                raise Damaged("it is shorter than its .idx says")
            data += chunk
        mine = lengths[done : done + count]
        yield Piece("tokens", source, first + done, bytes(data[:size]), mine, dtype.str)
        del data[:size]
        done += count


def _index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC) or head[17] not in _TYPES:
        raise Damaged("its .idx is no index of Megatron, version 1, with whole numbers")
    num_sequences, num_borders = np.frombuffer(head[18:], "<u8").tolist()
    expected = _HEADER_BYTES + 12 * num_sequences + 8 * num_borders
    if path.stat().st_size != expected:
        raise Damaged(f"its .idx has {path.stat().st_size} bytes instead of {expected}")
    # Mapped: an index has as many entries as there are documents.
    raw = np.memmap(path, "u1", mode="r")
    sizes = raw[_HEADER_BYTES:][: 4 * num_sequences].view("<i4")
    places = raw[_HEADER_BYTES + 4 * num_sequences :][: 8 * num_sequences].view("<i8")
    borders = raw[_HEADER_BYTES + 12 * num_sequences :].view("<i8")
    return np.dtype(_TYPES[head[17]]), sizes, places, borders
