"""JSON objects, one a line: the text is in a field, or several fields are a supervised example.

The reading half only finds line ends; parsing is the other half's, which runs in many processes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from looplm.data.account import Account, Skipped
from looplm.data.formats.document import MAX_DOCUMENT_BYTES, Document, Piece, chat_hint
from looplm.data.formats.stream import Damaged, FileStream
from looplm.data.formats.text import BYTE_ORDER_MARK

PIECE_BYTES = 2 << 20
_SHOWN_KEYS = 8
_KINDS = {
    str: "a text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


def read_lines(stream: FileStream, source: int, name: str, account: Account) -> Iterator[Piece]:
    """Yield whole lines, some megabytes at a time; a line above the longest document is left out and counted."""
    data, first, is_start = bytearray(), 0, True
    is_too_long = False  # inside a line that is left out
    for chunk in stream:
        begin = 0
        if is_start and chunk.startswith(BYTE_ORDER_MARK):
            account.notes["byte_order_mark"] += 1
            begin = len(BYTE_ORDER_MARK)
        is_start = False
        if is_too_long:
            begin = chunk.find(b"\n") + 1
            if begin == 0:
                continue
            is_too_long, first = False, first + 1
        data += chunk[begin:]
        # Cuts depend on the lines alone, not on how the bytes arrive: a build that goes on must find the same ones.
        while len(data) >= PIECE_BYTES and not is_too_long:
            end = data.rfind(b"\n", 0, PIECE_BYTES) + 1 or data.find(b"\n", PIECE_BYTES, MAX_DOCUMENT_BYTES) + 1
            if end:
                lines = bytes(data[:end])
                yield Piece("lines", source, first, lines)
                first += lines.count(b"\n")
            elif len(data) < MAX_DOCUMENT_BYTES:
                break
            else:
                account.skip(name, Skipped(first, "too_long", f"above {MAX_DOCUMENT_BYTES >> 20} MiB"))
                end = data.find(b"\n") + 1
                is_too_long = end == 0
                first += not is_too_long
            del data[: end or len(data)]
    if data.endswith(b"\0"):
        raise Damaged("it ends with zeros: it was not downloaded to its end, perhaps")
    if data:
        yield Piece("lines", source, first, bytes(data))


def line_documents(
    piece: Piece, field: str, example: Callable[[dict[str, Any], int], Iterator[Document | Skipped]] | None
) -> Iterator[Document | Skipped]:
    """Yield the document of every line that is not blank; `example` makes some of the object, else `field` holds it."""
    for number, line in enumerate(_lines(piece), start=piece.first):
        if not line or line.isspace():
            continue
        try:
            # Not from the bytes: `json` would let halves of surrogate pairs through.
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield Skipped(number, "invalid_utf8", f"byte {error.start} of the line")
            continue
        except (ValueError, RecursionError) as error:
            yield Skipped(number, "invalid_json", str(error))
            continue
        if not isinstance(record, dict):
            yield Skipped(number, "no_object", kind_of(record))
        elif example is not None:
            yield from example(record, number)
        elif field not in record:
            missing = no_field(number, field, record)
            yield Skipped(number, missing.reason, missing.detail + chat_hint(record))
        else:
            yield text_of(record[field], number, field)


def _lines(piece: Piece) -> Sequence[bytes]:
    if piece.lengths is None:
        return piece.data.split(b"\n")
    ends = np.cumsum(piece.lengths).tolist()
    return [piece.data[start:end] for start, end in pairwise([0, *ends])]


def no_field(number: int, field: str, record: dict[str, Any]) -> Skipped:
    """Say which field is missing and which are there."""
    keys = ", ".join(map(repr, list(record)[:_SHOWN_KEYS])) or "nothing"
    return Skipped(number, "no_field", f"no {field!r} beside {keys}")


def no_text(number: int, field: str, value: object) -> Skipped:
    """Say what a field holds that should hold a text."""
    return Skipped(number, "no_text", f"{field!r} holds {kind_of(value)}")


def kind_of(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    return _KINDS.get(type(value)) or f"a value of type {type(value).__name__}"


def text_of(value: object, number: int, field: str) -> Document | Skipped:
    """Make a document of a value that should be a text."""
    if not isinstance(value, str):
        return no_text(number, field, value)
    try:
        data = value.encode("utf-8")
    except UnicodeEncodeError:
        return Skipped(number, "invalid_utf8", "half of a surrogate pair")
    return Document.of_text(number, data)
