"""A build in parts, put together, has the bytes of the build on one machine; and every mistake is told in one line."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from looplm.data.build import assemble, plan
from looplm.data.build.encode import Encoder
from looplm.data.build.engine import check_engine, make_parts
from looplm.data.build.join import join_parts
from looplm.data.build.part import Part, PartReport, build_part, read_parts
from looplm.data.build.report import Progress
from looplm.data.build.request import make_request
from looplm.data.dataset import TokenDataset
from looplm.data.formats import jsonl, read
from looplm.data.formats.document import Reading
from looplm.data.remote import RemoteFolder, below
from looplm.data.source import SourceFile
from looplm.data.tokenizer import Tokenizer, train_tokenizer
from looplm.data.writer import build_dataset
from looplm.errors import UserError
from tests.data.bucket import BUCKET, bucket, google_bucket

ALL = {"shuffle_seed": 5, "dedup": True, "validation_fraction": 0.3}


@pytest.fixture(scope="module", autouse=True)
def small_grain() -> Iterator[None]:
    """Many groups, units and batches in a few kB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "_BLOCK_BYTES", 1500)
        patch.setattr(jsonl, "PIECE_BYTES", 1500)
        patch.setattr(plan, "_GROUP_BYTES", 4000)
        patch.setattr(assemble, "_MAX_DOCUMENTS", 17)
        patch.setattr(assemble, "_TABLES_TOGETHER", 3)
        yield


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files of lines, among them copies, an empty file, records without a text, a hidden file."""
    folder = tmp_path_factory.mktemp("in") / "lines"
    folder.mkdir()
    for number in range(10):
        rows: list[dict] = [{"text": f"document {i} {'y' * (i % 40)}"} for i in range(50 * number, 50 * number + 50)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"body": 1}]))
    (folder / "empty.jsonl").touch()
    (folder / ".hidden").touch()
    shutil.copy(folder / "3.jsonl", folder / "copies.jsonl")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(inputs: list[Path], tokenizer: Path | None, where: object, parts: str, **options: Any) -> list[PartReport]:
    request = make_request(inputs, tokenizer, **options)
    return list(make_parts(request, read_parts(parts), str(where), num_workers=1))


@pytest.fixture(scope="module")
def whole(lines: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build on one machine, with all options."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build_dataset([lines], tokenizer.path, out, num_workers=1, **ALL)
    return out


@pytest.mark.parametrize("count", [1, 3, 40])
def test_parts_have_the_bytes_of_one_build(
    lines: Path, tokenizer: Tokenizer, whole: Path, tmp_path: Path, count: int
) -> None:
    made = make([lines], tokenizer.path, tmp_path / "parts", f"1-{count}/{count}", **ALL)
    groups = [len(report.file.done) for report in made]
    assert sum(groups) == 11  # so of 40 parts most are empty
    assert max(groups) - min(groups) <= 1
    report = join_parts(str(tmp_path / "parts"), tmp_path / "joined")
    assert contents(tmp_path / "joined") == contents(whole)
    assert report.skipped == {"no_field": 11, "empty": 1, "duplicate": 50, "hidden": 1}
    assert join_parts(str(tmp_path / "parts"), tmp_path / "joined").was_there
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "joined"}
    # It is that build: one machine finds it, too.
    assert build_dataset([lines], tokenizer.path, tmp_path / "joined", num_workers=1, **ALL).was_there


def token_files(folder: Path) -> list[Path]:
    """The largest token is in one of them, and only the first begins with the separator."""
    for number, ids in enumerate(([0, 5, 6, 0, 7], [8, 0, 9, 300], [1, 0, 2, 3])):
        np.asarray(ids * 200, "<u2").tofile(folder / f"{number}.bin")
    return sorted(folder.glob("*.bin"))


CASES: dict[str, Callable[[Path, Path, Path], tuple[list[Path], Path | None, dict[str, Any]]]] = {
    "no options": lambda lines, model, folder: ([lines], model, {}),
    "one file of many units": lambda lines, model, folder: ([lines / "2.jsonl"], model, {"validation_fraction": 0.4}),
    "tokens without a tokenizer": lambda lines, model, folder: (
        token_files(folder),
        None,
        {"reading": Reading(separator_id=0)},
    ),
    "answers to learn": lambda lines, model, folder: (
        [pairs(folder)],
        model,
        {"reading": Reading(examples="pairs", template="{prompt}: {answer}"), "shuffle_seed": 1},
    ),
}


def pairs(folder: Path) -> Path:
    rows = [{"prompt": f"what is {i}", "answer": "y" * (i % 30 + 1)} for i in range(300)]
    for number in range(3):
        text = "".join(json.dumps(row) + "\n" for row in rows[100 * number : 100 * number + 100])
        (folder / f"{number}.jsonl").write_text(text)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_so_do_other_files(lines: Path, tokenizer: Tokenizer, tmp_path: Path, case: str) -> None:
    (tmp_path / "in").mkdir()
    inputs, model, options = CASES[case](lines, tokenizer.path, tmp_path / "in")
    build_dataset(inputs, model, tmp_path / "one", num_workers=1, **options)
    make(inputs, model, tmp_path / "parts", "1-3/3", **options)
    join_parts(str(tmp_path / "parts"), tmp_path / "joined")
    assert contents(tmp_path / "joined") == contents(tmp_path / "one")


class Killed(BaseException):
    """As by a signal."""


def kill_after(monkeypatch: pytest.MonkeyPatch, num_units: int) -> None:
    """The next process ends after so many units."""
    left, write = list(range(num_units)), Encoder.write

    def dying(self: Encoder, *arguments: Any) -> Any:
        if not left:
            raise Killed
        left.pop()
        return write(self, *arguments)

    monkeypatch.setattr(Encoder, "write", dying)


@pytest.mark.parametrize(
    ("place", "shuffled"), [("disk", True), ("s3", True), ("s3", False), ("gs", True), ("gs", False)]
)
def test_killed_parts_go_on(
    request: pytest.FixtureRequest, lines: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    place: str, shuffled: bool,
) -> None:  # fmt: skip
    options = ALL | {"shuffle_seed": 5 if shuffled else None}
    where = f"{tmp_path}/parts" if place == "disk" else f"{request.getfixturevalue(place)}-{shuffled}"
    asked = make_request([lines], tokenizer.path, **options)
    for _ in range(2):
        with monkeypatch.context() as patch:
            kill_after(patch, 3)
            with pytest.raises(Killed):
                build_part(asked, Part(2, 2), where, 1)
        with pytest.raises(UserError, match=r"part 2/2 in .* is not finished; .*it goes on"):
            join_parts(where, tmp_path / "joined")
    seen: list[Progress] = []
    build_part(asked, Part(2, 2), where, 1, seen.append)
    assert 0 < seen[-1].new_bytes < seen[-1].num_bytes == seen[-1].total_bytes
    with pytest.raises(UserError, match=r"part 1/2 is missing in .*; build it with .* --part 1/2"):
        join_parts(where, tmp_path / "joined")
    assert not build_part(asked, Part(1, 2), where, 1).was_there
    assert build_part(asked, Part(1, 2), where, 1).was_there
    join_parts(where, tmp_path / "joined")
    build_dataset([lines], tokenizer.path, tmp_path / "one", num_workers=1, **options)
    assert contents(tmp_path / "joined") == contents(tmp_path / "one")
    assert {path.name for path in tmp_path.iterdir()} <= {"parts", "joined", "one"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with bucket():
        yield f"s3://{BUCKET}/parts"


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    with google_bucket():
        yield f"gs://{BUCKET}/parts"


def test_the_whole_may_be_written_to_an_address(
    s3: str, lines: Path, tokenizer: Tokenizer, parts: Path, whole: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out, written = f"{s3}/whole", RemoteFolder(f"{s3}/whole")

    def stop(self: RemoteFolder, name: str, data: bytes) -> None:
        if name == "validation/manifest.json":
            raise Killed
        write(self, name, data)

    write = RemoteFolder.write
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "write", stop)
        with pytest.raises(Killed):
            join_parts(str(parts), out)
    assert "train/manifest.json" in written.names()  # which is whole
    assert not written.names() & {"validation/manifest.json", "build_report.json"}
    assert not join_parts(str(parts), out).was_there
    assert {name: written.read(name) for name in written.names()} == contents(whole)
    assert join_parts(str(parts), out).was_there
    assert TokenDataset.open(below(out, "train"), cache=tmp_path).num_documents
    make([lines], tokenizer.path, tmp_path / "others", "1/1")
    with pytest.raises(UserError, match="parts/whole exists already and holds something else"):
        join_parts(str(tmp_path / "others"), out)
    with pytest.raises(UserError, match="--out http://host/a can only be read"):
        join_parts(str(parts), "http://host/a")
    assert not list(tmp_path.glob("looplm-*"))


def test_shares_are_neighbours_of_about_as_many_bytes() -> None:
    sizes = [5, 0, 90, 3, 2, 40, 40, 0, 70, 1, 0]
    groups = [plan.Group((SourceFile(Path(str(n)), str(n), size, 0),), str(n)) for n, size in enumerate(sizes)]
    for count in range(1, 20):
        shares = [plan.share(groups, number, count) for number in range(count)]
        assert [group for share in shares for group in share] == groups
        # Half of its first group and of its last may be those of the neighbours.
        assert max(sum(group.size for group in share) for share in shares) <= 251 / count + 90
    assert [len(plan.share(groups[1:2] * 3, number, 2)) for number in range(2)] == [3, 0]  # of empty files


@pytest.fixture(scope="module")
def parts(lines: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "parts"
    make([lines], tokenizer.path, folder, "1-2/2", **ALL)
    return folder


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (shutil.rmtree, "holds no part; make them with `looplm data build ... --part I/N`"),
    "missing": (lambda parts: shutil.rmtree(parts / "part-00001-of-00002"), "part 1/2 is missing in .*--part 1/2$"),
    "unfinished": (
        lambda parts: (parts / "part-00002-of-00002/part.json").unlink(),
        "part 2/2 in .* is not finished; wait, or run its command again: it goes on",
    ),
    "of two builds": (
        lambda parts: (parts / "part-00001-of-00002").rename(parts / "part-00001-of-00003"),
        "holds part 1/3 and part 2/2: parts of two builds; move those of one away",
    ),
    "twice": (
        lambda parts: shutil.copytree(parts / "part-00001-of-00002", parts / "part-00002-of-00002", dirs_exist_ok=True),
        "part-00002-of-00002 holds part 1/2; remove it or name it rightly",
    ),
    "a unit gone": (
        lambda parts: next(parts.glob("part-00001-of-00002/*/000000.unit")).unlink(),
        "000000.unit has gone; remove part-00001-of-00002 and build it again",
    ),
    "a unit cut": (
        lambda parts: next(parts.glob("part-00002-of-00002/*/000001.unit")).write_bytes(b"x" * 10),
        "000001.unit is shorter than when it was written; build it again",
    ),
    "damaged": (
        lambda parts: (parts / "part-00002-of-00002/part.json").write_text("{"),
        "part-00002-of-00002/part.json is damaged, or of another version of looplm; remove part-00002-of-00002",
    ),
    "no tokenizer": (
        lambda parts: shutil.rmtree(parts / "part-00001-of-00002/tokenizer"),
        "tokenizer is not the tokenizer of the parts; remove part-00001-of-00002 and build it again",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_joined(parts: Path, tmp_path: Path, mistake: str) -> None:
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    do, message = MISTAKES[mistake]
    do(copy)
    with pytest.raises(UserError, match=message) as refused:
        join_parts(str(copy), tmp_path / "joined")
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"parts"}


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "options": ({"shuffle_seed": 6}, "shuffle_seed is 6, not 5"),
    "reading": ({"reading": Reading(field="body")}, "field is body, not text"),
    "input": ({}, "input is 1 files of .* bytes, .*, not 12 files of"),
    "tokenizer": ({}, "tokenizer is .*, not "),
}


@pytest.mark.parametrize("other", OTHERS)
def test_parts_of_other_builds_are_told(
    lines: Path, tokenizer: Tokenizer, parts: Path, tmp_path: Path, other: str
) -> None:
    changes, message = OTHERS[other]
    inputs = [lines / "1.jsonl"] if other == "input" else [lines]
    model = tokenizer.path
    if other == "tokenizer":
        texts = [path.read_text("utf-8") for path in sorted(Path(json.__file__).parent.glob("*.py"))]
        model = train_tokenizer(texts, 500, tmp_path / "tokenizer")
    options = ALL | changes
    copy = Path(shutil.copytree(parts, tmp_path / "parts"))
    # Where a part is already:
    with pytest.raises(UserError, match=f"part-00002-of-00002 is of another build, whose {backwards(message)}; remove"):
        make(inputs, model, copy, "2/2", **options)
    assert contents(copy) == contents(parts)
    # Where it is not:
    shutil.rmtree(copy / "part-00002-of-00002")
    make(inputs, model, copy, "2/2", **options)
    with pytest.raises(UserError, match=f"part 2/2 in .* is of another build than part 1/2: its {message}"):
        join_parts(str(copy), tmp_path / "joined")


def backwards(message: str) -> str:
    key, _, rest = message.partition(" is ")
    first, _, second = rest.partition(", not ")
    return f"{key} is {second}.*, not {first}"


def test_a_part_of_files_that_were_changed_is_built_again(lines: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lines, tmp_path / "in"))
    make([folder], tokenizer.path, tmp_path / "parts", "1-2/2")
    text = (folder / "0.jsonl").read_text()
    (folder / "0.jsonl").write_text(text.replace("y", "z"))  # of the same size
    assert [made.was_there for made in make([folder], tokenizer.path, tmp_path / "parts", "1-2/2")] == [False, True]
    join_parts(str(tmp_path / "parts"), tmp_path / "joined")
    build_dataset([folder], tokenizer.path, tmp_path / "one", num_workers=1)
    assert contents(tmp_path / "joined") == contents(tmp_path / "one")


def test_what_is_no_part(lines: Path, tokenizer: Tokenizer, whole: Path, parts: Path, tmp_path: Path) -> None:
    assert read_parts("3/7") == [Part(3, 7)]
    assert read_parts("2-4/7") == [Part(2, 7), Part(3, 7), Part(4, 7)]
    for text in ("0/7", "8/7", "3", "4-2/7", "1/0", "a/b", "3/7/9", "-1/7"):
        with pytest.raises(UserError, match=f"--part {text} is no part: write I/N with I from 1 to N"):
            read_parts(text)
    with pytest.raises(UserError, match="--engine spark is not known; use local or ray"):
        check_engine("spark", None)
    with pytest.raises(UserError, match=r"--engine ray makes parts; say which, e.g. all of 64 with --part 1-64/64"):
        check_engine("ray", None)
    copy = Path(shutil.copytree(whole, tmp_path / "whole"))
    with pytest.raises(UserError, match="whole is a dataset; parts need a folder of their own"):
        make([lines], tokenizer.path, copy, "1/2")
    (copy / "build_report.json").write_text("{}")
    with pytest.raises(UserError, match="whole exists already and holds something else"):
        join_parts(str(parts), copy)


def test_damaged_input_may_be_taken_by_one_part_or_in_joining(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What is refused of the whole is refused in joining: a part may hold all of the bad records."""
    (folder := tmp_path / "in").mkdir()
    (folder / "a.jsonl").write_text('{"text": "a"}\n' * 9)
    (folder / "b.jsonl").write_text('{"body": "a"}\n' * 400)
    make([folder], tokenizer.path, tmp_path / "parts", "1-2/2")
    with pytest.raises(UserError, match=r"400 of 409 records in .*parts were left out: .*--skip-damaged"):
        join_parts(str(tmp_path / "parts"), tmp_path / "joined")
    reading = Reading(skip_damaged=True)
    build_dataset([folder], tokenizer.path, tmp_path / "one", num_workers=1, reading=reading)
    join_parts(str(tmp_path / "parts"), tmp_path / "joined", skip_damaged=True)
    assert contents(tmp_path / "joined") == contents(tmp_path / "one")
    # Or as an option of a part, that is not there yet.
    shutil.rmtree(tmp_path / "joined")
    shutil.rmtree(tmp_path / "parts/part-00002-of-00002")
    make([folder], tokenizer.path, tmp_path / "parts", "2/2", reading=reading)
    join_parts(str(tmp_path / "parts"), tmp_path / "joined")
    assert contents(tmp_path / "joined") == contents(tmp_path / "one")
