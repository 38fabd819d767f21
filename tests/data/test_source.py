import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from looplm.data.account import Account
from looplm.data.formats.read import read_documents
from looplm.data.source import find_files
from looplm.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, data in {
        "b.txt": b"bee",
        "a/z.py": b"zed",
        "a/B.MD": b"big",
        "a.txt": "caf\u00e9\r\n".encode(),
        "bom.txt": b"\xef\xbb\xbfbom",
        "empty.txt": b"",
        "blank.txt": b" \n\t",
        "latin.txt": b"caf\xe9",
        "nul.txt": b"a\0b",
        "image.png": b"png",
        "firmware.bin": b"\x01\x02\x03\x04",
        "archive.tar.gz": b"tar",
        ".hidden/c.txt": b"hidden",
        "a/.c.txt": b"hidden",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_folders_are_searched_in_order(tree: Path) -> None:
    files = find_files([tree])
    names = [file.name for file in files]
    assert names == sorted(names)
    assert set(names) == {
        "a.txt", "a/B.MD", "a/z.py", "b.txt", "blank.txt", "bom.txt", "empty.txt", "latin.txt", "nul.txt"
    }  # fmt: skip
    assert [file.size for file in files] == [(tree / name).stat().st_size for name in names]


def test_kinds_follow_the_names(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.py.zst", "d.parquet", "e.ndjson", "f.bin", "g.bin", "g.idx"):
        (tmp_path / name).write_bytes(b"x")
    found = {file.name: (file.kind, file.compression) for file in find_files([tmp_path])}
    assert found == {
        "a.jsonl": ("jsonl", None),
        "b.jsonl.gz": ("jsonl", "gz"),
        "c.py.zst": ("text", "zst"),
        "d.parquet": ("parquet", None),
        "e.ndjson": ("jsonl", None),
        "g.bin": ("tokens", None),
    }
    assert [file.kind for file in find_files([tmp_path / "f.bin"])] == ["tokens"]
    (tmp_path / "h.parquet.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"h\.parquet\.gz: \.parquet files are read by position; decompress it"):
        find_files([tmp_path / "h.parquet.gz"])


def test_named_files_come_first_whatever_their_suffix_and_once(tree: Path) -> None:
    account = Account()
    files = find_files([tree / "image.png", tree / "b.txt", tree, tree / "a"], account)
    names = [file.name for file in files]
    assert names[:2] == ["image.png", "b.txt"]
    assert names.count("b.txt") == 1
    assert "z.py" not in names
    assert account.notes == {"repeated_input": 4}
    assert account.examples == {"unknown_suffix": ["archive.tar.gz", "firmware.bin"]}


def test_documents_are_the_bytes_of_the_files(tree: Path) -> None:
    skipped: Counter[str] = Counter()
    documents = list(read_documents([tree], skipped))
    assert skipped == {"empty": 2, "invalid_utf8": 1, "nul": 1, "unknown_suffix": 3}
    files = [tree / name for name in ("a.txt", "a/B.MD", "a/z.py", "b.txt", "bom.txt")]
    for document, file in zip(documents, files, strict=True):
        data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
        assert isinstance(document.content, str)
        assert document.content.encode() == data
        assert (document.num_bytes, document.sha256) == (len(data), hashlib.sha256(data).digest())


def test_what_a_folder_holds_besides_is_told(tree: Path) -> None:
    (tree / "a/g.bin").write_bytes(b"tokens")
    (tree / "a/g.idx").write_bytes(b"belongs to g.bin")
    (tree / "a/h.idx").write_bytes(b"belongs to nothing")
    account = Account()
    find_files([tree], account)
    assert account.skipped == {"unknown_suffix": 4}
    assert account.examples == {"unknown_suffix": ["a/h.idx", "archive.tar.gz", "firmware.bin", "image.png"]}


def test_tokens_are_no_texts(tmp_path: Path) -> None:
    np.array([1, 2, 3], "<u2").tofile(tmp_path / "a.bin")
    (tmp_path / "b.txt").write_text("text")
    skipped: Counter[str] = Counter()
    documents = read_documents([tmp_path / "a.bin", tmp_path / "b.txt"], skipped)
    assert next(documents).content == "text"
    assert skipped == {"no_text": 1}, "so far: a tokenizer may have read enough"


def test_missing_path(tree: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_files([tree, tree / "nowhere"])


def test_no_file_and_no_document(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no text file in .*bare"):
        find_files([tmp_path / "bare"])
    with pytest.raises(UserError, match=r"no document .*1 empty, 1 invalid_utf8 \(latin\.txt:1: byte 3\)"):
        list(read_documents([tree / "latin.txt", tree / "empty.txt"]))
