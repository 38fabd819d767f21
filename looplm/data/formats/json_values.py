"""JSON that is not one object a line: an array of records, or objects of several lines one after another.

The reading half finds where records end, by strings and brackets alone; parsing is the other half's, as for lines.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from looplm.data.account import Account
from looplm.data.formats.document import MAX_DOCUMENT_BYTES, Piece
from looplm.data.formats.jsonl import PIECE_BYTES
from looplm.data.formats.stream import Damaged, FileStream
from looplm.data.formats.text import BYTE_ORDER_MARK

_BETWEEN = re.compile(rb"[\s,]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}"]', re.DOTALL)
"""A lone quotation mark begins a string that is not there to its end."""
_OTHER = re.compile(rb"""[^\s,\[\]{}"]+|[\]}]""")


def read_values(stream: FileStream, source: int, account: Account) -> Iterator[Piece]:
    """Yield records, some megabytes at a time. Raises Damaged when the file ends in the middle of its array."""
    records: list[bytes] = []
    held, first = 0, 0
    for record in _records(stream, account):
        records.append(record)
        held += len(record)
        if held >= PIECE_BYTES:
            yield _piece(source, first, records)
            first, records, held = first + len(records), [], 0
    if records:
        yield _piece(source, first, records)
    if stream.damage:
        raise stream.damage


def _piece(source: int, first: int, records: list[bytes]) -> Piece:
    return Piece("lines", source, first, b"".join(records), np.array([len(record) for record in records]))


def _records(chunks: Iterable[bytes], account: Account) -> Iterator[bytes]:
    """The values of arrays at the top, and what else stands there."""
    data, place, depth = b"", 0, 0  # of the record that begins at the start of the data; place: what was looked at
    is_in_array, is_inside, is_start, count = False, False, True, 0
    for chunk in _with_end(chunks):
        is_end = chunk is None
        data += chunk or b""
        if is_start:
            account.notes["byte_order_mark"] += data.startswith(BYTE_ORDER_MARK)
            data, is_start = data.removeprefix(BYTE_ORDER_MARK), False
        while True:
            if not is_inside:
                data = data[_BETWEEN.match(data).end() :]  # type: ignore[union-attr]
                if data[:1] == (b"]" if is_in_array else b"["):
                    data, is_in_array = data[1:], not is_in_array
                    continue
                is_inside, place, depth = bool(data), 0, 0
                if not data:
                    break
            place, depth, is_whole = _scan(data, place, depth, is_end)
            if not is_whole:
                break
            yield data[:place]
            data, is_inside, count = data[place:], False, count + 1
        if is_inside and (is_end or len(data) > MAX_DOCUMENT_BYTES):
            end = "" if is_end else f" within {MAX_DOCUMENT_BYTES >> 20} MiB"
            raise Damaged(f"its record {count + 1} does not end{end}")
    if is_in_array:
        raise Damaged(f"it ends after {count} records, and its array does not")


def _scan(data: bytes, place: int, depth: int, is_end: bool) -> tuple[int, int, bool]:
    """Go on from a place inside a record: how far it was looked at, the open brackets there, and whether it ended."""
    if data[:1] not in (b"{", b"["):
        match = (_STRING if data[:1] == b'"' else _OTHER).match(data)
        is_whole = match is not None and (is_end or match.end() < len(data))
        return match.end() if match and is_whole else 0, 0, is_whole
    for match in _BRACKETS.finditer(data, place):
        mark = match.group()
        if mark == b'"':
            return match.start(), depth, False
        place = match.end()
        if len(mark) == 1:
            depth += 1 if mark in b"{[" else -1
            if depth == 0:
                return place, 0, True
    return len(data), depth, False


def _with_end(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    yield from chunks
    yield None
