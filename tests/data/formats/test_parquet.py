from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from looplm.data.account import Account
from looplm.data.formats import parquet
from looplm.data.formats.document import Reading
from looplm.data.formats.read import read_documents
from looplm.errors import UserError


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType) -> None:
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2000)
    texts = [f"document {number} \u00e9{'x' * (number % 200)}" for number in range(500)]
    column = pa.array([*texts, None, " ", "a\0b"], pa.string()).cast(kind)
    table = pa.table({"id": range(503), "body": column, "big": ["y" * 100] * 503})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    account = Account()
    documents = list(read_documents([tmp_path], account, Reading(field="body")))
    assert [document.content for document in documents] == texts
    assert [document.record for document in documents] == list(range(500))
    assert account.skipped == {"no_text": 1, "empty": 1, "nul": 1}


def test_checksums_of_pages_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["abcdefgh" * 20]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **plain)
    path.write_bytes(path.read_bytes().replace(b"abcdefghabcdefgh", b"abcdefghabcdefgi", 1))
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        list(read_documents([path]))


def test_a_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has no column 'text'; name one of id, body with --field"):
        list(read_documents([tmp_path]))
