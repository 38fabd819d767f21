"""What is wrong with input: refused in one line, or left out and counted, or kept and noted; never silently."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from looplm.data.account import Account
from looplm.data.build.report import BuildReport
from looplm.data.dataset import TokenDataset
from looplm.data.formats import jsonl, stream, text
from looplm.data.formats.document import Reading, make_reading
from looplm.data.formats.read import read_documents
from looplm.data.source import find_files
from looplm.data.tokenizer import Tokenizer, train_tokenizer
from looplm.data.writer import build_dataset
from looplm.errors import UserError


@pytest.fixture
def build(tokenizer: Tokenizer, tmp_path: Path):
    """Writes files, builds a dataset of them, and returns the report and the texts of the documents."""

    def run(files: dict[str, bytes], **options) -> tuple[BuildReport, list[str]]:
        folder = tmp_path / "in"
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        report = build_dataset([folder], tokenizer.path, tmp_path / "out", num_workers=1, **options)
        return report, texts(TokenDataset.open(tmp_path / "out"))

    return run


def texts(dataset: TokenDataset) -> list[str]:
    bounds = [int(place) for place in dataset.document_offsets]
    return [dataset.tokenizer().decode(dataset.tokens(start, stop)) for start, stop in pairwise(bounds)]


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        ("a.txt", b"", "empty", ""),
        ("a.txt", b" \n\t\r\n", "empty", ""),
        ("a.txt", b"\xef\xbb\xbf", "empty", ""),
        ("a.txt", b"caf\xe9", "invalid_utf8", ": byte 3"),
        ("a.txt", b"one\0two", "nul", ""),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "invalid_utf8", ": byte 13 of the line"),
        ("a.jsonl", lines({"text": "half \ud83d"}), "invalid_utf8", ": half of a surrogate pair"),
        ("a.jsonl", lines({"text": "one\0two"}), "nul", ""),
        ("a.jsonl", lines({"text": " "}), "empty", ""),
        ("a.jsonl", lines({"text": None}), "no_text", ": 'text' holds null"),
        ("a.jsonl", lines({"text": 3}), "no_text", ": 'text' holds a number"),
        ("a.jsonl", lines({"body": "x", "id": 1}), "no_field", ": no 'text' beside 'body', 'id'"),
        ("a.jsonl", lines("text"), "no_object", ": a text"),
        ("a.jsonl", b'{"text": "cut', "invalid_json", ": Unterminated string starting at: line 1 column 10 (char 9)"),
        ("a.jsonl", b"[" * 200_000, "invalid_json", None),
    ],
)
def test_a_record_that_is_no_document_is_left_out_and_counted(
    build, name: str, data: bytes, reason: str, detail: str | None
) -> None:
    report, documents = build({name: data, "b.txt": b"good"})
    assert documents == ["good"]
    assert report.skipped == {reason: 1}
    (example,) = report.examples[reason]
    assert example == f"{name}:1{detail}" if detail is not None else example.startswith(f"{name}:1")


def test_a_bad_line_costs_no_other_line(build) -> None:
    good = [{"text": f"line {number}"} for number in range(4)]
    data = lines(good[0]) + b"\n  \n{broken\n" + lines(good[1]) + b'{"text": "\xff"}\r\n' + lines(good[2], {}, good[3])
    report, documents = build({"a.jsonl": data})
    assert documents == [record["text"] for record in good]
    assert report.skipped == {"invalid_json": 1, "invalid_utf8": 1, "no_field": 1}
    assert report.examples["no_field"] == ["a.jsonl:8: no 'text' beside nothing"]
    assert report.details()[1] == "  skipped invalid_utf8: a.jsonl:6: byte 10 of the line"


def test_what_is_kept_is_noted(build) -> None:
    report, documents = build(
        {
            "a.txt": b"\xef\xbb\xbfwith a mark",
            "b.txt": b"one\r\ntwo",
            "c.jsonl": b"\xef\xbb\xbf" + lines({"text": "x\r\ny"}),
        }
    )
    assert documents == ["with a mark", "one\r\ntwo", "x\r\ny"]
    assert report.skipped == {}
    assert report.notes == {"byte_order_mark": 2, "crlf": 2}
    assert report.details() == ["  kept: 2 byte_order_mark, 2 crlf"]


def test_when_every_record_lacks_the_field_its_fields_are_named(build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no document in .*: 2 no_field \(a\.jsonl:1: no 'text' beside 'content'\)"):
        build({"a.jsonl": lines({"content": "x"}, {"content": "y"})})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    _, documents = build({}, reading=Reading(field="content"))
    assert documents == ["x", "y"]


def test_chats_that_are_read_as_texts_are_told_how_to_be_read(build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    hint = "; chats are read with `looplm data build --examples chat`"
    with pytest.raises(UserError, match=rf"2 no_field \(a\.jsonl:1: no 'text' beside 'messages'{hint}\); give texts"):
        build({"a.jsonl": lines(chat, chat)})
    pq.write_table(pa.table({"messages": [chat["messages"]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"no column 'text'; name one of messages with --field{hint}"):
        build_dataset([tmp_path / "a.parquet"], tokenizer.path, tmp_path / "out", num_workers=1)
    # Where chats are asked for, it is the name of the field that is wrong.
    reading = make_reading(examples="chat", messages_field="turns")
    with pytest.raises(UserError, match=r"no column 'turns'; name one of messages with --messages-field$"):
        build_dataset([tmp_path / "a.parquet"], tokenizer.path, tmp_path / "out", reading=reading, num_workers=1)
    with pytest.raises(UserError, match=r"\(a\.jsonl:1: no 'turns' beside 'messages'\)"):
        build({}, reading=reading)
    report, _ = build({}, reading=make_reading(examples="chat"))
    assert report.num_documents == 2


def test_a_line_of_ten_megabytes_is_a_document(tmp_path: Path) -> None:
    long = "0123456789" * (1 << 20)
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "before"}, {"text": long}, {"text": "after"}))
    assert [document.content for document in read_documents([tmp_path])] == ["before", long, "after"]


@pytest.mark.parametrize("compress", [None, gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_line_above_the_longest_document_is_left_out(compress, build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "PIECE_BYTES", 1000)
    monkeypatch.setattr(jsonl, "MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 700)
    monkeypatch.setattr(stream, "_COMPRESSED_CHUNK_BYTES", 7)
    small = [{"text": f"line {number} {'y' * (number * 97 % 1500)}"} for number in range(40)]
    data = lines(*small[:20], {"text": "x" * 20_000}, *small[20:39], {"text": "x" * 5_000}, small[39])
    name = "a.jsonl" if compress is None else "a.jsonl.gz" if compress is gzip.compress else "a.jsonl.zst"
    report, documents = build({name: compress(data) if compress else data})
    assert documents == [record["text"] for record in small]
    assert report.examples == {"too_long": [f"{name}:21: above 0 MiB", f"{name}:41: above 0 MiB"]}


def test_a_long_text_is_cut_at_line_ends(build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_DOCUMENT_BYTES", 100)
    whole = "".join(f"line {number} \u00e9\n" for number in range(40)) + "\u00e9" * 120
    report, documents = build({"a.txt": whole.encode(), "b.txt": b"short"})
    assert "".join(documents[:-1]) == whole
    assert all(len(document.encode()) <= 100 for document in documents)
    assert all(document.endswith("\n") for document in documents[:4])
    assert report.notes == {"cut_text": 1}


COMPRESSORS = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_members_one_after_another_are_one_file(build, suffix: str) -> None:
    one, two = (COMPRESSORS[suffix](lines({"text": word})) for word in ("one", "two"))
    padding = bytes(3) if suffix == "gz" else b""
    assert build({f"a.jsonl.{suffix}": one + two + padding})[1] == ["one", "two"]


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_a_damaged_compressed_file_is_refused_or_taken_as_far_as_it_goes(
    build, suffix: str, damage: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    records = [{"text": "".join(map(chr, rng.integers(97, 123, 300)))} for _ in range(2000)]
    data = bytearray(COMPRESSORS[suffix](lines(*records)))
    if damage == "truncated":
        del data[-len(data) // 3 :]
    else:
        data[-2] ^= 1  # of the checksum
    name = f"a.jsonl.{suffix}"
    with pytest.raises(UserError, match=rf"{name} is damaged: it is {damage}.*; get it again, or .*--skip-damaged"):
        build({name: bytes(data), "b.txt": b"good"})
    assert not (tmp_path / "out").exists()
    account = Account()
    documents = [d.content for d in read_documents([tmp_path / "in"], account, Reading(skip_damaged=True))]
    assert documents[-1] == "good"
    assert documents[:-1] == [record["text"] for record in records[: len(documents) - 1]]
    assert len(documents) > 800
    assert account.skipped == {"damaged_file": 1, "invalid_json": 1}


def test_a_truncated_parquet_file(build) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one", "two"]}), sink)
    whole = sink.getvalue().to_pybytes()
    with pytest.raises(UserError, match=r"a\.parquet is damaged: it is truncated or corrupt \("):
        build({"a.parquet": whole[:-20], "b.txt": b"good"})
    report, documents = build({}, reading=Reading(skip_damaged=True))
    assert (documents, report.skipped) == (["good"], {"damaged_file": 1})


def test_copies_of_files_and_of_documents(build, tmp_path: Path) -> None:
    files = {"a.txt": b"same", "b.txt": b"same", "c.jsonl": lines({"text": "same"}, {"text": "other"})}
    report, documents = build(files)
    assert documents == ["same", "same", "same", "other"]
    assert report.notes == {"identical_file": 1}
    report = build_dataset(
        [tmp_path / "in", tmp_path / "in/a.txt"],
        TokenDataset.open(tmp_path / "out").tokenizer().path,
        tmp_path / "once",
        dedup=True,
    )
    assert texts(TokenDataset.open(tmp_path / "once")) == ["same", "other"]
    assert report.skipped == {"duplicate": 2}
    assert report.notes == {"repeated_input": 1}


def test_an_output_that_cannot_be_made(build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match=r"out .*/file/out cannot be written: .*/file is no folder"):
        train_tokenizer(["some text"], 280, tmp_path / "file/out")
    build({"a.txt": b"text"})
    tokenizer = TokenDataset.open(tmp_path / "out").tokenizer().path
    with pytest.raises(UserError, match=r"out .*/file/out cannot be made: Not a directory; give another folder"):
        build_dataset([tmp_path / "in"], tokenizer, tmp_path / "file/out")


def test_a_file_that_grows_or_vanishes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    (file,) = find_files([path])
    path.write_bytes(b"one two")
    with pytest.raises(UserError, match=r"a\.txt was changed while it was read: 7 bytes instead of 3"):
        list(stream.FileStream(file))
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.txt"):
        stream.FileStream(file)


def test_only_the_first_examples_are_kept(build) -> None:
    report, _ = build({"a.jsonl": b"broken\n" * 100 + lines(*[{"text": "good"}] * 100)})
    assert report.skipped == {"invalid_json": 100}
    assert len(report.examples["invalid_json"]) == 5


def test_a_build_that_leaves_most_out_is_as_loud_as_a_damaged_file(build, tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = {"a.jsonl": lines({"text": "good"}, {"body": "x"}, {"body": "y"}), "package.json": b'{"name": "no data"}'}
    with pytest.raises(UserError, match=r"^2 of 3 records in .*: 3 no_field \(a\.jsonl:2: .*take the others with --"):
        build(files)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"^2 of 3 records"):
        list(read_documents([tmp_path / "in"]))
    units = {unit: unit.stat().st_mtime_ns for unit in (tmp_path / ".out.partial").rglob("*.unit")}
    assert units
    seen: list[bool] = []
    report = build_dataset(
        [tmp_path / "in"],
        tokenizer.path,
        tmp_path / "out",
        reading=Reading(skip_damaged=True),
        progress=lambda state: seen.append(state.new_bytes > 0),
    )
    assert (report.num_documents, report.skipped) == (1, {"no_field": 3})
    assert not any(seen), "what was read before is used"
