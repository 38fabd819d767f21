"""Text files: a file is a document, but a very long one is cut at line ends."""

from collections.abc import Iterator

from looplm.data.account import Account, Skipped
from looplm.data.formats.document import MAX_DOCUMENT_BYTES, Document, Piece
from looplm.data.formats.stream import FileStream

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_text(stream: FileStream, source: int, account: Account) -> Iterator[Piece]:
    """Yield the file as one piece, or as several below the longest document, each up to a line end where it has one."""
    data, first = bytearray(), 0
    for chunk in stream:
        data += chunk
        while len(data) > MAX_DOCUMENT_BYTES:
            end = data.rfind(b"\n", 0, MAX_DOCUMENT_BYTES) + 1 or _character_start(data, MAX_DOCUMENT_BYTES)
            account.notes["cut_text"] += first == 0
            yield Piece("text", source, first, _without_mark(bytes(data[:end]), first, account))
            del data[:end]
            first += 1
    if data or first == 0:
        yield Piece("text", source, first, _without_mark(bytes(data), first, account))


def text_documents(piece: Piece) -> Iterator[Document | Skipped]:
    """Yield the one document of a piece."""
    yield Document.of_text(piece.first, piece.data)


def _without_mark(data: bytes, first: int, account: Account) -> bytes:
    if first == 0 and data.startswith(BYTE_ORDER_MARK):
        account.notes["byte_order_mark"] += 1
        return data.removeprefix(BYTE_ORDER_MARK)
    return data


def _character_start(data: bytearray, end: int) -> int:
    while end > 1 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end
