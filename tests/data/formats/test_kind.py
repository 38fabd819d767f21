"""Files hold what their first bytes say: archives of JSON as they are published, and what lies in place of data."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from looplm.data.account import Account
from looplm.data.formats import json_values
from looplm.data.formats.document import Reading
from looplm.data.formats.read import read_documents
from looplm.errors import UserError

RECORDS = [{"text": text, "n": [1, {"a": "]"}]} for text in ("one", 'tw"o\\', "\u00e9 {[,\n]}", "four")]
TEXTS = [record["text"] for record in RECORDS]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
SHAPES = {
    "lines": LINES,
    "lines of windows": b"\xef\xbb\xbf\r\n" + LINES.replace(b"\n", b"\r\n\r\n"),
    "array": json.dumps(RECORDS, ensure_ascii=False).encode(),
    "pretty array": b"\xef\xbb\xbf" + json.dumps(RECORDS, indent=2).encode(),
    "pretty objects": "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode(),
}


def wide_frames(data: bytes) -> bytes:
    """Of several frames, the first of which is to be passed over, with a window of 1 GiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    packed = b"\x50\x2a\x4d\x18\x02\0\0\0xx"
    for part in (data[:7], data[7:]):
        frame = compressor.compressobj()
        packed += frame.compress(part) + frame.flush()
    return packed


PACKED = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]) + bytes(5),
    ".zst": wide_frames,
    ".xz": lambda data: lzma.compress(data[:9]) + lzma.compress(data[9:]),
    ".bz2": lambda data: bz2.compress(data[:9]) + bz2.compress(data[9:]),
}


def contents(path: Path, **reading) -> list[object]:
    return [document.content for document in read_documents([path], Account(), Reading(**reading))]


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_records_of_json(tmp_path: Path, monkeypatch, shape: str, packing: str, piece_bytes: int) -> None:
    monkeypatch.setattr(json_values, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr("looplm.data.formats.stream.CHUNK_BYTES", 5 if piece_bytes == 1 else 1 << 20)
    for name in ("a.json", "b.jsonl", "c.records"):
        if name == "c.records" and shape == "pretty objects":
            continue  # a text may begin with a bracket
        path = tmp_path / f"{name}{packing}"
        path.write_bytes(PACKED[packing](SHAPES[shape]))
        assert contents(path) == TEXTS, name


def test_a_folder_gives_them_too_and_one_object_is_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "b.json").write_text(json.dumps({"text": "alone"}, indent=2))
    (tmp_path / "package.json").write_text('{"name": "x"}')
    account = Account()
    assert [document.content for document in read_documents([tmp_path], account)] == [*TEXTS, "alone"]
    assert account.skipped == {"no_field": 1}


def test_records_of_an_array_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '[{"text": "one"}, 3, "two", {"text": "b\nroken"}, {"text": "four"}, [5], {"text"}]'
    )
    account = Account()
    documents = list(read_documents([tmp_path / "a.json"], account, Reading(skip_damaged=True)))
    assert [(document.content, document.record) for document in documents] == [("one", 0), ("four", 4)]
    assert account.skipped == {"invalid_json": 2, "no_object": 3}


@pytest.mark.parametrize("end", [1, 30])
def test_an_array_that_is_cut_is_damaged(tmp_path: Path, end: int) -> None:
    (tmp_path / "a.json").write_bytes(SHAPES["array"][:-end])
    with pytest.raises(UserError, match=r"a\.json is damaged: (it ends after 4 records|its record 4 does not end)"):
        contents(tmp_path / "a.json")


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t"), (".csv.gz", ",")])
def test_columns_of_separated_values(tmp_path: Path, suffix: str, separator: str) -> None:
    table = f'id{separator}text\n1{separator}"two\nlines, ""said"""\n2{separator}007\n'.encode()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(table) if suffix.endswith("gz") else table)
    assert contents(path) == ['two\nlines, "said"', "007"]
    with pytest.raises(UserError, match=r"1 no_field \(a.*: no column 'body' beside id, text; see --field"):
        contents(path, field="body")


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_files_of_arrow(tmp_path: Path, new) -> None:
    table = pa.table({"id": [1, 2, 3, 4], "text": TEXTS})
    with new(str(tmp_path / "data.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    assert contents(tmp_path) == TEXTS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
        ("a.jsonl", b"<!DOCTYPE html><html>Sign in</html>", "a web page and not the data"),
        ("a.jsonl.gz", LINES, "its name says gz, and it is none"),
        ("a.jsonl", LINES + bytes(100), "it ends with zeros"),
        ("a.jsonl.gz", gzip.compress(bytes(257) + b"ustar", mtime=0), "is a tar archive; unpack it"),
        ("a.jsonl", b"PK\x03\x04rest", "is a zip archive; unpack it"),
        ("a.jsonl.gz", gzip.compress(b"PAR1rest", mtime=0), "parquet files are read by position; decompress it"),
        ("a.weights", bytes(range(9)), "holds no text, and is of no other kind"),
    ],
)
def test_what_lies_in_place_of_data_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        contents(tmp_path / name)


def test_a_dictionary_is_asked_for(tmp_path: Path) -> None:
    dictionary = zstandard.train_dictionary(1000, [b"some words and number %d" % n * 5 for n in range(500)])
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(LINES))
    with pytest.raises(UserError, match=r"it needs its dictionary; decompress it with `zstd -d -D DICTIONARY`"):
        contents(tmp_path / "a.jsonl.zst")
