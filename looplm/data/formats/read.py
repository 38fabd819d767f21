"""Both halves for every kind of file: pieces of files in one process, documents of pieces in many."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from looplm.data.account import Account, Skipped
from looplm.data.formats.document import CHAT_FIELDS, Document, Piece, Reading, check_most_are_taken, no_documents
from looplm.data.formats.json_values import read_values
from looplm.data.formats.jsonl import line_documents, read_lines, text_of
from looplm.data.formats.kind import Kind, kind_of
from looplm.data.formats.parquet import read_arrow, read_table, table_documents
from looplm.data.formats.separated import read_separated
from looplm.data.formats.stream import Damaged, FileStream
from looplm.data.formats.supervised import example_maker
from looplm.data.formats.text import read_text, text_documents
from looplm.data.formats.token_file import read_token_file, token_documents
from looplm.data.source import Source, SourceFile, find_files
from looplm.errors import UserError

_BLOCK_BYTES = 2 << 20
"""Half a second of work, so that no process is left with much to do when the others have ended."""
PLAIN = Reading()


@dataclass(frozen=True, slots=True)
class Block:
    """Pieces of one or several files of a group, to be encoded together."""

    number: int
    """In its group."""
    pieces: tuple[Piece, ...]
    num_bytes: int
    """Of files on disk, that were read for it."""
    num_files: int
    """That ended in it."""


def read_blocks(
    files: Sequence[SourceFile], reading: Reading, account: Account, sources: list[Source]
) -> Iterator[Block]:
    """Yield the files as blocks of some megabytes; append the digests of files to `sources`.

    A function of the files alone, so that a build may go on in their middle. Raises UserError for a file that cannot
    be opened, that was changed meanwhile, or that is damaged, unless `reading.skip_damaged`.
    """
    number, held, disk_bytes, num_files = 0, 0, 0, 0
    pieces: list[Piece] = []
    for source, file in enumerate(files):
        stream, seen = FileStream(file), 0
        try:
            for piece in _read_pieces(stream, file, source, reading, account):
                if held and held + len(piece.data) > _BLOCK_BYTES:
                    yield Block(number, tuple(pieces), disk_bytes, num_files)
                    number, pieces, held, disk_bytes, num_files = number + 1, [], 0, 0, 0
                pieces.append(piece)
                held += len(piece.data)
                disk_bytes, seen = disk_bytes + stream.num_read - seen, stream.num_read
            if stream.damage:
                raise stream.damage
        except Damaged as found:
            error = stream.damage or found  # what is wrong with the bytes comes before what is wrong in them
            if not reading.skip_damaged:
                raise UserError(
                    f"{file.path} is damaged: {error}; get it again, or take what can be read with --skip-damaged"
                ) from None
            account.skip(file.name, Skipped(-1, "damaged_file", str(error)))
        sources.append(Source(file.name, file.size, stream.finish()))
        disk_bytes, num_files = disk_bytes + stream.num_read - seen, num_files + 1
    yield Block(number, tuple(pieces), disk_bytes, num_files)


class DocumentReader:
    """The second half: documents of pieces. Picklable."""

    def __init__(self, reading: Reading, tokens: Mapping[str, str], special: Sequence[str] = ()) -> None:
        """`tokens` and `special`: see `supervised.example_maker`."""
        self.reading, self._tokens, self._special = reading, dict(tokens), tuple(special)

    def documents(self, piece: Piece, name: str, account: Account) -> Iterator[Document]:
        """Yield the documents of a piece of the file of that name; enter into the account what is left out."""
        num_taken, num_lost, last = 0, 0, -1
        for document in self._all(piece):
            if isinstance(document, Skipped):
                account.skip(name, document)
                num_lost += document.reason != "empty"
            else:
                num_taken, last = num_taken + (document.record != last), document.record
                yield document
        # A lone record tells nothing: folders of code have files of JSON that are no data.
        if piece.kind in ("lines", "table") and num_taken + num_lost > 1:
            account.num_records += num_taken + num_lost
            account.num_lost += num_lost

    def _all(self, piece: Piece) -> Iterator[Document | Skipped]:
        reading = self.reading
        example = example_maker(reading, self._tokens, self._special)
        if piece.kind == "text":
            yield from text_documents(piece)
        elif piece.kind == "tokens":
            yield from token_documents(piece, reading.separator_id)
        elif piece.kind == "lines":
            yield from line_documents(piece, reading.field, example)
        else:
            yield from table_documents(piece, lambda value, number: text_of(value, number, reading.field), example)


def _read_pieces(
    stream: FileStream, file: SourceFile, source: int, reading: Reading, account: Account
) -> Iterator[Piece]:
    kind = kind_of(file, stream)
    if reading.examples and kind in ("text", "tokens"):
        raise UserError(f"{file.path} has no records with {' and '.join(fields(reading))}; give .jsonl or .parquet")
    if file.size == 0 and kind in ("lines", "csv", "tokens"):  # of the others it is found while reading
        account.skip(file.name, Skipped(-1, "empty"))
        return iter(())
    columns, optional = fields(reading), CHAT_FIELDS if reading.examples == "chat" else ()
    readers: dict[Kind, Callable[[], Iterator[Piece]]] = {
        "text": lambda: read_text(stream, source, account),
        "lines": lambda: read_lines(stream, source, file.name, account),
        "values": lambda: read_values(stream, source, account),
        "csv": lambda: read_separated(stream, file, source, columns, account),
        "parquet": lambda: read_table(stream, file, source, columns, optional),
        "arrow": lambda: read_arrow(stream, file, source, columns, optional),
        "tokens": lambda: read_token_file(stream, file, source, reading, account),
    }
    return readers[kind]()


def read_documents(
    inputs: Sequence[Path], account: Account | None = None, reading: Reading = PLAIN
) -> Iterator[Document]:
    """Yield the texts of `inputs` in the order of `find_files`; enter into the account what gave none so far.

    Raises UserError like `find_files` and `read_blocks`, and at the end when there is no text or most is left out.
    """
    account, num_documents = Account() if account is None else account, 0
    reader = DocumentReader(reading, {})
    files = find_files(inputs, account)
    for block in read_blocks(files, reading, account, []):
        for piece in block.pieces:
            name = files[piece.source].name
            for document in reader.documents(piece, name, account):
                if isinstance(document.content, np.ndarray):
                    account.skip(name, Skipped(document.record, "no_text", "tokens"))
                else:
                    num_documents += 1
                    yield document
    if num_documents == 0:
        raise no_documents(inputs, account)
    if not reading.skip_damaged:
        check_most_are_taken(inputs, account)


def fields(reading: Reading) -> dict[str, str]:
    """Names of the fields that are read of every record, each with the option that gives it."""
    if reading.examples == "pairs":
        return {reading.prompt_field: "--prompt-field", reading.answer_field: "--answer-field"}
    return {reading.messages_field: "--messages-field"} if reading.examples else {reading.field: "--field"}
