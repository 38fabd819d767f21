"""Tables as text: .csv and .tsv, whose first line names the columns. A row is a document, as in .parquet."""

import csv
import io
from collections.abc import Iterator, Mapping

from looplm.data.account import Account, Skipped
from looplm.data.formats.document import Piece
from looplm.data.formats.parquet import table_piece
from looplm.data.formats.stream import Damaged, FileStream
from looplm.data.source import SourceFile
from looplm.errors import UserError

_BLOCK_BYTES = 16 << 20
"""The longest row."""


def read_separated(
    stream: FileStream, file: SourceFile, source: int, fields: Mapping[str, str], account: Account
) -> Iterator[Piece]:
    """Yield the columns of `fields` in batches; a file without one of them is left out as a whole. Raises Damaged."""
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
    except ImportError:
        raise UserError(f"{file.path} needs the `pyarrow` library; run `pip install looplm[data]`") from None
    delimiter = "\t" if file.suffix == ".tsv" else ","
    head = stream.peek().decode("utf-8-sig", "replace")
    names = next(csv.reader(io.StringIO(head), delimiter=delimiter), [])
    if missing := next((field for field in fields if field not in names), None):
        shown = ", ".join(names)[:100]
        account.skip(file.name, Skipped(-1, "no_field", f"no column {missing!r} beside {shown}; see {fields[missing]}"))
        return
    first = 0
    try:
        with arrow_csv.open_csv(
            _File(stream),
            arrow_csv.ReadOptions(block_size=_BLOCK_BYTES),
            arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            arrow_csv.ConvertOptions(include_columns=list(fields), column_types=dict.fromkeys(fields, pa.string())),
        ) as table:
            for batch in table:
                yield table_piece(source, first, batch)
                first += batch.num_rows
    except pa.ArrowException as error:
        raise Damaged(f"after row {first}: {str(error).splitlines()[0]}") from None


class _File(io.RawIOBase):
    """A stream as a file that is read on."""

    def __init__(self, stream: FileStream) -> None:
        super().__init__()
        self._chunks, self._rest = iter(stream), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest and (chunk := next(self._chunks, b"")):
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
