"""Ready-made token files, taken over as they are: llm.c and .npy (with a header), nanoGPT (without), Megatron (with an
index, see `megatron`).

Without a header nothing says the type of a token, and nowhere where documents end; both are options, and what
contradicts them is refused. Whether the separator begins documents or ends them is decided once for all files: writers
begin a new file after so many tokens, in the middle of a document (`separator_begins`).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from looplm.data.account import Account, Skipped
from looplm.data.formats.document import Document, Piece, Reading
from looplm.data.formats.megatron import read_megatron
from looplm.data.formats.parquet import ids_document
from looplm.data.formats.stream import Damaged, FileStream, open_file
from looplm.data.formats.token_header import TokenHeader, read_header
from looplm.data.source import SourceFile, holds_tokens
from looplm.errors import UserError

PIECE_TOKENS = 4 << 20
MAX_DOCUMENT_TOKENS = 16 << 20
"""Longer documents are cut."""
_LARGEST_VOCABULARY = 1 << 21
_LOOK_AT = 4096


def read_token_file(
    stream: FileStream, file: SourceFile, source: int, reading: Reading, account: Account
) -> Iterator[Piece]:
    """Yield whole documents, some megabytes at a time. Raises Damaged, and UserError for a type that cannot be."""
    if file.path.with_suffix(".idx").is_file():
        yield from read_megatron(stream, file, source)
        return
    header = read_header(stream.peek(), file.size)
    dtype = _dtype(header, file, reading)
    chunks = _after(stream, header.num_bytes if header else 0)
    data = bytearray(next(chunks, b""))
    looked_at = min(len(data), _LOOK_AT) // dtype.itemsize * dtype.itemsize
    _check_type(np.frombuffer(bytes(data[:looked_at]), dtype), dtype, file)
    separator = reading.separator_id
    if separator is not None and not 0 <= separator <= np.iinfo(dtype).max:
        raise UserError(f"--separator-id {separator} is no token of {file.path}, which holds {dtype.name}")
    is_at_start = np.frombuffer(bytes(data[: dtype.itemsize]), dtype)[:1].tolist() == [separator]
    begins = is_at_start if reading.separator_begins is None else reading.separator_begins
    is_found, last, first = is_at_start, separator, 0
    for chunk in chunks:
        data += chunk
        if len(data) >= PIECE_TOKENS * dtype.itemsize and (lengths := _lengths(data, dtype, separator, begins)).size:
            is_found = True
            yield _take(data, lengths, dtype, source, first)
            first += lengths.size
        if len(data) >= MAX_DOCUMENT_TOKENS * dtype.itemsize:
            account.notes["cut_tokens"] += 1
            yield _take(data, np.array([MAX_DOCUMENT_TOKENS]), dtype, source, first)
            first += 1
    if data:
        lengths = _lengths(data, dtype, separator, begins)
        is_found = is_found or lengths.size > 0
        last = int(np.frombuffer(bytes(data[-dtype.itemsize :]), dtype)[0])
        rest = len(data) // dtype.itemsize - int(lengths.sum())
        yield _take(data, np.append(lengths, rest)[: lengths.size + (rest > 0)], dtype, source, first)
    if not is_found:
        account.notes["no_separator"] += 1
    else:
        account.notes["separator_begins" if begins else "separator_ends"] += 1
        account.notes["cut_document"] += not is_at_start if begins else last != separator


def token_documents(piece: Piece, separator: int | None) -> Iterator[Document | Skipped]:
    """Yield the documents of a piece; one that is nothing but its separator is left out."""
    assert piece.lengths is not None
    tokens = np.frombuffer(piece.data, piece.dtype)
    for number, part in enumerate(np.split(tokens, np.cumsum(piece.lengths)[:-1]), start=piece.first):
        if part.size == 0 or (part.size == 1 and part[0] == separator):
            yield Skipped(number, "empty")
        else:
            yield ids_document(number, part)


def separator_begins(files: Sequence[SourceFile], reading: Reading) -> bool | None:
    """Return whether the separator is the first token of documents; None if no token file needs it.

    The first file tells it if its first token is one, since no document ends there; so does the last token of all.
    Where all files are cut at both ends, other files tell it, and the format: llm.c and those that followed it write
    the separator first, nanoGPT last.
    """
    if (separator := reading.separator_id) is None:
        return None
    edges = [found for file in files if (found := _edges(file, reading)) is not None]
    firsts, lasts = ([edge[place] == separator for edge in edges] for place in (0, 1))
    if not edges:
        return None
    if firsts[0] or lasts[-1]:
        return firsts[0]
    return any(firsts) or (not any(lasts) and edges[0][2])


def _edges(file: SourceFile, reading: Reading) -> tuple[int, int, bool] | None:
    """First and last token of a file of tokens without an index, and whether it has a header."""
    if file.size == 0 or file.path.with_suffix(".idx").is_file():
        return None
    if file.suffix != ".bin" and not holds_tokens(file.path):
        return None
    try:
        with open_file(file) as opened:
            header = read_header(opened.read(FileStream.HEAD_BYTES), file.size)
            dtype = _dtype(header, file, reading)
            start = header.num_bytes if header else 0
            if file.size - start < dtype.itemsize:
                return None
            ends = []
            for place in (start, file.size - dtype.itemsize):
                opened.seek(place)
                ends.append(int(np.frombuffer(opened.read(dtype.itemsize), dtype)[0]))
    except Damaged:  # it is told when it is read
        return None
    return ends[0], ends[1], header is not None


def _after(stream: FileStream, num_bytes: int) -> Iterator[bytes]:
    """The bytes of a file behind its header."""
    for chunk in stream:
        if num_bytes < len(chunk):
            yield chunk[num_bytes:]
        num_bytes = max(num_bytes - len(chunk), 0)


def _dtype(header: TokenHeader | None, file: SourceFile, reading: Reading) -> np.dtype:
    """From the header, or the option. Raises Damaged when the size of the file does not agree."""
    if header:
        held = (file.size - header.num_bytes) / header.dtype.itemsize
        if held != header.num_tokens:
            raise Damaged(f"its header says {header.num_tokens} tokens, and its size {held:g}")
        return header.dtype
    dtype = np.dtype(reading.token_dtype)
    if file.size % dtype.itemsize:
        raise Damaged(f"its {file.size} bytes are no whole number of {reading.token_dtype} tokens")
    return dtype


def _check_type(tokens: np.ndarray, dtype: np.dtype, file: SourceFile) -> None:
    # Upper halves of ids of 32 bits are small: seen as 16 bits, every second one is.
    if dtype.itemsize == 2 and tokens.size >= 64 and tokens[1::2].max() < 32 and tokens[::2].max() >= 256:
        raise UserError(f"{file.path} read as uint16 has every second token near 0: give --token-dtype uint32")
    if dtype.itemsize == 2 and tokens.size >= 64 and not tokens[1::2].any() and tokens[::2].any():
        raise UserError(f"{file.path} read as uint16 has every second token 0: give --token-dtype uint32")
    if dtype.itemsize == 4 and tokens.size and int(tokens.view("<u4").max()) >= _LARGEST_VOCABULARY:
        raise UserError(
            f"{file.path} read as {dtype.name} holds token {tokens[tokens.view('<u4') >= _LARGEST_VOCABULARY][0]}, "
            "which is beyond any vocabulary: give --token-dtype uint16"
        )


def _lengths(data: bytearray, dtype: np.dtype, separator: int | None, begins: bool) -> np.ndarray:
    """Tokens of every document that is whole in the data."""
    if separator is None:
        return np.zeros(0, np.int64)
    tokens = np.frombuffer(bytes(data[: len(data) // dtype.itemsize * dtype.itemsize]), dtype)
    places = np.flatnonzero(tokens == separator)
    if begins:  # of a document that was cut, the rest comes before the first separator
        return np.diff(places, prepend=0)[int(places[:1].tolist() == [0]) :]
    return np.diff(places, prepend=-1)


def _take(data: bytearray, lengths: np.ndarray, dtype: np.dtype, source: int, first: int) -> Piece:
    size = int(lengths.sum()) * dtype.itemsize
    piece = Piece("tokens", source, first, bytes(data[:size]), lengths, dtype.str)
    del data[:size]
    return piece
