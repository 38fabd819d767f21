"""Parquet and Arrow files: a row is a document, as a text or as ids. Only columns that are asked for are read."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from looplm.data.account import Skipped
from looplm.data.formats.document import Document, Piece, chat_hint
from looplm.data.formats.stream import CHUNK_BYTES, Damaged, FileStream
from looplm.data.source import SourceFile
from looplm.errors import UserError

IDS_FIELD = "input_ids"
"""Rows of token ids where there is no field of texts."""
_BATCH_BYTES = 4 << 20
_MAX_ROWS = 4096


def read_table(
    stream: FileStream, file: SourceFile, source: int, fields: Mapping[str, str], optional: Collection[str]
) -> Iterator[Piece]:
    """Yield the columns of `fields` in batches; of the ids where a plain text is not there and `input_ids` is.

    Every field comes with the option that names it; of `optional` ones those are read that are there. Raises Damaged,
    and UserError for a file without such a column.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{file.path} needs the `pyarrow` library; run `pip install looplm[data]`") from None
    for _ in stream:
        pass  # its digest; the file is read by position below
    try:
        with pq.ParquetFile(
            file.path, buffer_size=CHUNK_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as table:
            columns = _columns(table.schema_arrow.names, fields, optional, file)
            first = 0
            for batch in table.iter_batches(_rows(table, columns), columns=columns):
                yield table_piece(source, first, batch)
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"it is truncated or corrupt ({str(error).splitlines()[0]})") from None


def read_arrow(
    stream: FileStream, file: SourceFile, source: int, fields: Mapping[str, str], optional: Collection[str]
) -> Iterator[Piece]:
    """As `read_table`, of a file or stream of Arrow, like those of `datasets.save_to_disk`."""
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError(f"{file.path} needs the `pyarrow` library; run `pip install looplm[data]`") from None
    for _ in stream:
        pass
    first = 0
    try:
        with pa.memory_map(str(file.path)) as mapped:
            is_stream = mapped.read(6) != b"ARROW1"
            mapped.seek(0)
            table = pa.ipc.open_stream(mapped) if is_stream else pa.ipc.open_file(mapped)
            columns = _columns(table.schema.names, fields, optional, file)
            batches = table if is_stream else map(table.get_batch, range(table.num_record_batches))
            for batch in batches:
                for start in range(0, batch.num_rows, _MAX_ROWS):
                    yield table_piece(source, first + start, batch.select(columns).slice(start, _MAX_ROWS))
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"it is truncated or corrupt ({str(error).splitlines()[0]})") from None


def table_piece(source: int, first: int, batch: Any) -> Piece:
    """Return a piece of the rows of a batch of Arrow."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Piece("table", source, first, sink.getvalue().to_pybytes())


def table_documents(
    piece: Piece,
    text: Callable[[object, int], Document | Skipped],
    example: Callable[[dict[str, Any], int], Iterator[Document | Skipped]] | None,
) -> Iterator[Document | Skipped]:
    """Yield the document of every row: `example` of the row, ids as they are, or `text` of the value."""
    import pyarrow as pa

    with pa.ipc.open_stream(piece.data) as reader:
        batch = reader.read_next_batch()
    if example is not None:
        for number, row in enumerate(batch.to_pylist(), start=piece.first):
            yield from example(_without_nulls(row), number)
        return
    column = batch.column(0)
    if not _is_list(column.type):
        for number, value in enumerate(column.to_pylist(), start=piece.first):
            yield text(value, number)
        return
    for number, row in enumerate(column, start=piece.first):
        if not row.is_valid or len(row.values) == 0:
            yield Skipped(number, "empty")
        else:
            yield ids_document(number, np.asarray(row.values.to_numpy(zero_copy_only=False)))


def ids_document(number: int, ids: np.ndarray) -> Document | Skipped:
    """Make a document of token ids."""
    if ids.dtype.kind not in "iu":
        return Skipped(number, "no_ids", f"{ids.dtype} is no type of a token id")
    # What is outside the vocabulary is refused where that is known, before it can wrap.
    return Document(number, ids, 0, hashlib.sha256(b"ids:" + ids.astype("<i8").tobytes()).digest())


def _columns(names: list[str], fields: Mapping[str, str], optional: Collection[str], file: SourceFile) -> list[str]:
    if all(field in names for field in fields):
        return [*fields, *(field for field in optional if field in names and field not in fields)]
    missing, option = next((field, option) for field, option in fields.items() if field not in names)
    is_plain = option == "--field"
    if is_plain and IDS_FIELD in names:
        return [IDS_FIELD]
    raise UserError(
        f"{file.path} has no column {missing!r}; name one of {', '.join(names)} with {option}"
        f"{chat_hint(names) * is_plain}"
    )


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """All structs of a column have the same fields; those that a record did not have are null."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(part) for key, part in value.items() if part is not None}
        return [cleaned(part) for part in value] if isinstance(value, list) else value

    return {name: cleaned(value) for name, value in row.items()}


def _rows(table: Any, columns: list[str]) -> int:
    """Rows of a batch, so that it holds some megabytes."""
    num_bytes, meta = 0, table.metadata
    for group in range(meta.num_row_groups):
        for index in range(meta.num_columns):
            column = meta.row_group(group).column(index)
            if column.path_in_schema.split(".")[0] in columns:
                num_bytes += column.total_uncompressed_size
    return int(np.clip(_BATCH_BYTES * max(meta.num_rows, 1) // max(num_bytes, 1), 1, _MAX_ROWS))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
