import hashlib
import os
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


def test_names_say_what_is_taken(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.py.zst", "d.parquet", "e.ndjson", "f.bin", "g.bin", "g.idx"):
        (tmp_path / name).write_bytes(b"x")
    found = {file.name: (file.suffix, file.compression) for file in find_files([tmp_path])}
    assert found == {
        "a.jsonl": (".jsonl", None),
        "b.jsonl.gz": (".jsonl", "gz"),
        "c.py.zst": (".py", "zst"),
        "d.parquet": (".parquet", None),
        "e.ndjson": (".ndjson", None),
        "g.bin": (".bin", None),
    }
    assert [file.name for file in find_files([tmp_path / "f.bin"])] == ["f.bin"]
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
    assert account.examples == {
        "archive": ["archive.tar.gz: unpack it to take what it holds"],
        "hidden": [".hidden", "a/.c.txt", ".c.txt"],  # `a` was named as well
        "unknown_suffix": ["firmware.bin"],
    }


def test_documents_are_the_bytes_of_the_files(tree: Path) -> None:
    account = Account()
    documents = list(read_documents([tree], account))
    assert account.skipped == {
        "archive": 1, "empty": 2, "hidden": 2, "invalid_utf8": 1, "nul": 1, "unknown_suffix": 2
    }  # fmt: skip
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
    assert account.skipped == {"archive": 1, "hidden": 2, "unknown_suffix": 3}
    assert account.examples["unknown_suffix"] == ["a/h.idx", "firmware.bin", "image.png"]
    with pytest.raises(UserError, match=r"archive\.tar\.gz is an archive; unpack it, and give the folder"):
        find_files([tree / "archive.tar.gz"])
    with pytest.raises(UserError, match=r"g\.idx is an index; give g\.bin, which is read with it"):
        find_files([tree / "a/g.idx"])


def test_links_are_followed_and_those_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    root, disk = tmp_path / "in", tmp_path / "disk"
    for path in (root / "here/a.txt", disk / "b.txt", disk / "deep/c.jsonl", tmp_path / "blob"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{path.name}"}}')
    (root / "there").symlink_to("../disk")
    (root / "again").symlink_to(disk)
    (root / "here/circle").symlink_to(root)
    (root / "d.txt").symlink_to(tmp_path / "blob")  # its name says what it is, as in a cache of downloads
    (root / "e.txt").symlink_to(root / "here/a.txt")
    (root / "gone.txt").symlink_to("/nowhere/gone.txt")
    (root / "gone").symlink_to(tmp_path / "unmounted")
    os.mkfifo(root / "pipe.txt")
    account = Account()
    names = [file.name for file in find_files([root], account)]
    assert names == ["again/b.txt", "again/deep/c.jsonl", "d.txt", "e.txt"]
    assert account.notes == {"repeated_input": 3}, "the circle, the second link to the folder, and the file of e.txt"
    assert account.skipped == {"dangling_link": 2, "no_regular_file": 1}
    assert account.examples["dangling_link"][1] == "gone.txt: /nowhere/gone.txt is not there"
    with pytest.raises(UserError, match=r"gone does not exist, it is a link to .*/unmounted that leads nowhere"):
        find_files([root / "gone"])


def test_a_folder_that_cannot_be_read_is_no_empty_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def scandir(path: str):
        if os.fspath(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot read the folder .*/a: Permission denied; change its rights"):
        find_files([tree])


def test_tokens_are_no_texts(tmp_path: Path) -> None:
    np.array([1, 2, 3], "<u2").tofile(tmp_path / "a.bin")
    (tmp_path / "b.txt").write_text("text")
    account = Account()
    documents = read_documents([tmp_path / "a.bin", tmp_path / "b.txt"], account)
    assert next(documents).content == "text"
    assert account.skipped == {"no_text": 1}, "so far: a tokenizer may have read enough"


def test_missing_path(tree: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_files([tree, tree / "nowhere"])


def test_no_file_and_no_document(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no text file in .*bare"):
        find_files([tmp_path / "bare"])
    with pytest.raises(UserError, match=r"no document .*1 empty, 1 invalid_utf8 \(latin\.txt:1: byte 3\)"):
        list(read_documents([tree / "latin.txt", tree / "empty.txt"]))
