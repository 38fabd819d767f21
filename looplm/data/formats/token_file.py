"""Ready-made token files, taken over as they are: llm.c (with a header), nanoGPT (without), Megatron (with an index).

llm.c: 256 int32 of header (magic 20240520, version 1: uint16; magic 20240801, version 7: uint32; then the number of
tokens). Without a header nothing says the type of a token or where documents end; both are options, and what
contradicts them is refused. A separator that is the first token of a file begins documents, another one ends them.
Megatron's index is read by `megatron`.
"""

from collections.abc import Iterator

import numpy as np

from looplm.data.account import Account, Skipped
from looplm.data.formats.document import Document, Piece, Reading
from looplm.data.formats.megatron import read_megatron
from looplm.data.formats.parquet import ids_document
from looplm.data.formats.stream import Damaged, FileStream
from looplm.data.source import SourceFile
from looplm.errors import UserError

PIECE_TOKENS = 4 << 20
MAX_DOCUMENT_TOKENS = 16 << 20
"""Longer documents are cut."""
_HEADER_BYTES = 1024
_HEADERS: dict[tuple[int, ...], np.dtype] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
_LOOK_AT = 4096


def read_token_file(
    stream: FileStream, file: SourceFile, source: int, reading: Reading, account: Account
) -> Iterator[Piece]:
    """Yield whole documents, some megabytes at a time. Raises Damaged, and UserError for a type that cannot be."""
    if file.path.with_suffix(".idx").is_file():
        yield from read_megatron(stream, file, source)
        return
    chunks = iter(stream)
    data = bytearray(next(chunks, b""))
    dtype = _dtype(data, file, reading)
    data = data[_HEADER_BYTES:] if _header(data) else data
    _check_type(np.frombuffer(bytes(data[:_LOOK_AT]), dtype), dtype, file)
    separator = reading.separator_id
    if separator is not None and not 0 <= separator <= np.iinfo(dtype).max:
        raise UserError(f"--separator-id {separator} is no token of {file.path}, which holds {dtype.name}")
    is_found = False
    begins = separator is not None and np.frombuffer(bytes(data[: dtype.itemsize]), dtype)[:1].tolist() == [separator]
    first = 0
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
        is_found = is_found or begins or lengths.size > 0
        rest = len(data) // dtype.itemsize - int(lengths.sum())
        yield _take(data, np.append(lengths, rest)[: lengths.size + (rest > 0)], dtype, source, first)
    if not is_found:
        account.notes["no_separator"] += 1


def token_documents(piece: Piece, separator: int | None) -> Iterator[Document | Skipped]:
    """Yield the documents of a piece; one that is nothing but its separator is left out."""
    assert piece.lengths is not None
    tokens = np.frombuffer(piece.data, piece.dtype)
    for number, part in enumerate(np.split(tokens, np.cumsum(piece.lengths)[:-1]), start=piece.first):
        if part.size == 0 or (part.size == 1 and part[0] == separator):
            yield Skipped(number, "empty")
        else:
            yield ids_document(number, part)


def _header(data: bytearray) -> tuple[int, ...] | None:
    head = np.frombuffer(bytes(data[:8]), "<i4") if len(data) >= _HEADER_BYTES else np.zeros(0, "<i4")
    key = tuple(head.tolist())
    return key if key in _HEADERS else None


def _dtype(data: bytearray, file: SourceFile, reading: Reading) -> np.dtype:
    """From the header, or the option. Raises Damaged when the size of the file does not agree."""
    if key := _header(data):
        dtype = _HEADERS[key]
        count = int(np.frombuffer(bytes(data[8:12]), "<i4")[0])
        if file.size != _HEADER_BYTES + count * dtype.itemsize:
            held = (file.size - _HEADER_BYTES) / dtype.itemsize
            raise Damaged(f"its header says {count} tokens, and its size {held:g}")
        return dtype
    dtype = np.dtype(reading.token_dtype)
    if file.size % dtype.itemsize:
        raise Damaged(f"its {file.size} bytes are no whole number of {reading.token_dtype} tokens")
    return dtype


def _check_type(tokens: np.ndarray, dtype: np.dtype, file: SourceFile) -> None:
    # Ids of 32 bits are below 2**16 nearly always: seen as 16 bits, every second one is 0.
    if dtype.itemsize == 2 and tokens.size >= 64 and not tokens[1::2].any() and tokens[::2].any():
        raise UserError(f"{file.path} read as uint16 has every second token 0: give --token-dtype uint32")
    if dtype.itemsize == 4 and tokens.size and int(tokens.view("<u4").max()) >= 1 << 24:
        raise UserError(
            f"{file.path} read as {dtype.name} holds token {tokens[tokens.view('<u4') >= 1 << 24][0]}, which is beyond "
            "any vocabulary: give --token-dtype uint16"
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
