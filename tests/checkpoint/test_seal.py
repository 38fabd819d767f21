"""What a seal refuses: names that lead elsewhere, links, and anything that is not what was written."""

import json
import os
import random
from pathlib import Path

import pytest

from looplm.checkpoint.seal import (
    SEAL_FILE,
    Damaged,
    Seal,
    StoredArray,
    StoredFile,
    check_files,
    digest_file,
    file_name,
    leaf_name,
    list_files,
    read_seal,
    write_seal,
)
from looplm.errors import UserError

DIGEST = "0" * 32


def seal_of(**changes: object) -> Seal:
    array = StoredArray(shape=(2, 3), dtype="float32", digest="0" * 16)
    whole = {
        "step": 5, "seed": 0, "data": "d", "saved_at": "now", "metrics": {"eval/loss_depth_3": 1.5},
        "arrays": {"params": {"core.kernel": array}}, "files": {"params/d/0a": StoredFile(size=3, xxh128=DIGEST)},
    }  # fmt: skip
    return Seal(**{**whole, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a checkpoint of step 5."""
    folder = tmp_path / "5"
    (folder / "params" / "d").mkdir(parents=True)
    (folder / "params" / "d" / "0a").write_bytes(b"abc")
    return folder


def test_a_seal_comes_back(folder: Path) -> None:
    files = {name: digest_file(folder, name) for name in list_files(folder)}
    assert list(files) == ["params/d/0a"]
    write_seal(folder, seal_of(files=files))
    seal = read_seal(folder)
    assert seal == seal_of(files=files)
    check_files(folder, seal, seal.files)


def test_hidden_files_are_other_programs(folder: Path) -> None:
    """What a network file system keeps of a removed file that is open, say."""
    for name in (".nfs0001", "params/.nfs0002", ".cache/file"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of somebody else")
    assert list_files(folder) == ["params/d/0a"]


def test_a_flipped_bit_in_any_byte_of_a_seal_shows(folder: Path) -> None:
    write_seal(folder, seal_of())
    content = (folder / SEAL_FILE).read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (folder / SEAL_FILE).write_bytes(flipped)
        with pytest.raises((Damaged, UserError)):
            read_seal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "no seal"),
        (lambda text: "", "empty"),
        (lambda text: "[" * 100_000, "no seal"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "update looplm"),
        (lambda text: text + " ", "does not match its own digest"),
    ],
)
def test_a_changed_seal_is_refused(folder: Path, change, message: str) -> None:
    write_seal(folder, seal_of())
    (folder / SEAL_FILE).write_text(change((folder / SEAL_FILE).read_text()))
    with pytest.raises((Damaged, UserError), match=message):
        read_seal(folder)


def test_a_seal_of_another_step_is_refused(folder: Path) -> None:
    write_seal(folder, seal_of(step=4))
    with pytest.raises(Damaged, match="belongs to step 4"):
        read_seal(folder)


BAD = ("..", ".", "", "/", "\\", "\0", "\n", "\x1b", "\x7f", "~", "C:", " ", "\u202e", "\ud800", "%2e", "*", "\u00e9")
GOOD = ("params", "d", "ocdbt.process_0", "_METADATA", "0a1f", "commit_success.txt", "core")


def names(count: int) -> list[str]:
    """Names that a forger might try: at least one part of each is bad, and a seed says which."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        parts = [draw.choice(GOOD) for _ in range(draw.randint(0, 4))]
        parts.insert(draw.randint(0, len(parts)), draw.choice(BAD))
        if draw.random() < 0.5:
            place = draw.randrange(len(parts))
            parts[place] += draw.choice(BAD[3:])
        name = draw.choice(("/", "/", "/..", "//")).join(parts)
        found.append(draw.choice(("", "", "/", "../", "./")) + name)
    return found


def test_names_that_lead_elsewhere_are_refused(folder: Path) -> None:
    for name in names(10_000):
        for check in (file_name, leaf_name):
            with pytest.raises(ValueError, match="is no "):
                check(name)
        with pytest.raises(ValueError, match="is no "):
            digest_file(folder, name)
    assert [file_name(name) for name in GOOD] == list(GOOD)


def test_a_sealed_name_that_leads_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"abc")
    body = seal_of().model_dump(mode="json")
    for name in ("../secret", str(tmp_path / "secret"), "params/../../secret"):
        forged = json.loads(json.dumps(body).replace("params/d/0a", name))
        write_forged(folder, forged)
        with pytest.raises(Damaged, match="is no plain name"):
            read_seal(folder)


def write_forged(folder: Path, body: dict) -> None:
    """With the digest that belongs to it."""
    from looplm.checkpoint.seal import seal_bytes

    (folder / SEAL_FILE).write_bytes(seal_bytes(body))


@pytest.mark.parametrize("what", ["file", "folder", "step", "pipe"])
def test_links_are_not_followed(folder: Path, tmp_path: Path, what: str) -> None:
    sealed = {name: digest_file(folder, name) for name in list_files(folder)}
    path = {"file": folder / "params/d/0a", "folder": folder / "params", "step": folder, "pipe": folder / "params/d/0a"}
    os.rename(path[what], tmp_path / "elsewhere")
    if what == "pipe":
        os.mkfifo(path[what])
    else:
        os.symlink(tmp_path / "elsewhere", path[what])
    with pytest.raises(Damaged):
        check_files(folder, seal_of(files=sealed), sealed)
