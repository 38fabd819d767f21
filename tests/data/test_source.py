import hashlib
from collections import Counter
from pathlib import Path

import pytest

from looplm.data.source import Document, Skipped, find_files, read_documents, read_file
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


def test_named_files_come_first_whatever_their_suffix_and_once(tree: Path) -> None:
    names = [file.name for file in find_files([tree / "image.png", tree / "b.txt", tree, tree / "a"])]
    assert names[:2] == ["image.png", "b.txt"]
    assert names.count("b.txt") == 1
    assert "z.py" not in names


def test_documents_are_the_bytes_of_the_files(tree: Path) -> None:
    skipped: Counter[str] = Counter()
    documents = list(read_documents([tree], skipped))
    assert [document.name for document in documents] == ["a.txt", "a/B.MD", "a/z.py", "b.txt", "bom.txt"]
    assert skipped == {"empty": 2, "invalid_utf8": 1, "nul": 1}
    for document in documents:
        data = (tree / document.name).read_bytes().removeprefix(b"\xef\xbb\xbf")
        assert document.text.encode() == data
        assert (document.num_bytes, document.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_read_file_tells_why_not(tree: Path) -> None:
    by_name = {file.name: read_file(file) for file in find_files([tree])}
    assert by_name["latin.txt"] == Skipped("latin.txt", "invalid_utf8")
    assert isinstance(by_name["b.txt"], Document)


def test_missing_path(tree: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_files([tree, tree / "nowhere"])


def test_no_file_and_no_document(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no text file in .*bare"):
        find_files([tmp_path / "bare"])
    with pytest.raises(UserError, match=r"no document .*1 empty, 1 invalid_utf8"):
        list(read_documents([tree / "latin.txt", tree / "empty.txt"]))


def test_a_file_that_vanishes(tree: Path) -> None:
    files = find_files([tree])
    files[0].path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.txt"):
        read_file(files[0])
