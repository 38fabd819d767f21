import errno
import hashlib
import json
import multiprocessing
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from looplm.data.build import encode
from looplm.data.dataset import TokenDataset
from looplm.data.formats import read
from looplm.data.formats.document import Reading
from looplm.data.shard import token_dtype
from looplm.data.tokenizer import Tokenizer
from looplm.data.tokenizer.sentencepiece import SentencePieceTokenizer
from looplm.data.writer import Progress, build_dataset
from looplm.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents(dataset: TokenDataset) -> list[str]:
    tokenizer = dataset.tokenizer()
    bounds = dataset.document_offsets.tolist()
    return [tokenizer.decode(dataset.tokens(a, b)) for a, b in pairwise(bounds)]


def test_a_dataset_decodes_to_its_texts(emails: Path, dataset: TokenDataset) -> None:
    paths = sorted(
        (path.relative_to(emails).as_posix(), path) for path in emails.rglob("*") if path.suffix in (".py", ".rst")
    )
    texts = [data.decode() for _, path in paths if (data := path.read_bytes())]
    assert documents(dataset) == texts
    assert dataset.document_bytes.tolist() == [len(text.encode()) for text in texts]
    assert dataset.num_bytes == sum(len(text.encode()) for text in texts)
    for start, end in zip(dataset.document_offsets[:-1], dataset.document_offsets[1:], strict=True):
        ids = dataset.tokens(int(start), int(end))
        assert (ids[0], ids[-1]) == (1, 2)
        assert not np.isin(ids[1:-1], [1, 2]).any()


def test_files_are_what_the_manifest_says(emails: Path, dataset: TokenDataset) -> None:
    entries = {entry.name: entry for entry in dataset.manifest.files}
    assert set(entries) | {"manifest.json", "build_report.json"} == set(contents(dataset.path))
    for name, entry in entries.items():
        data = (dataset.path / name).read_bytes()
        assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    lines = [json.loads(line) for line in (dataset.path / "sources.jsonl").read_text().splitlines()]
    sizes = [lines[line]["size"] for line, _ in dataset.document_sources.tolist()]
    assert sizes == dataset.document_bytes.tolist()
    assert len(lines) == dataset.num_documents + 1  # one is empty
    assert all(hashlib.sha256((emails / line["name"]).read_bytes()).hexdigest() == line["sha256"] for line in lines)
    assert str(emails) not in (dataset.path / "manifest.json").read_text()


def test_bytes_do_not_depend_on_the_workers(
    emails: Path, dataset: TokenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_BLOCK_BYTES", 1 << 14)
    report = build_dataset([emails], dataset.path / "tokenizer.model", tmp_path / "out", num_workers=3)
    assert contents(tmp_path / "out") == contents(dataset.path)
    assert report.num_tokens == dataset.num_tokens
    assert report.num_documents == dataset.num_documents


def test_held_out_documents_are_whole_and_chosen_by_content(
    emails: Path, dataset: TokenDataset, tmp_path: Path
) -> None:
    model = dataset.path / "tokenizer.model"
    report = build_dataset([emails], model, tmp_path / "a", validation_fraction=0.3)
    train, held_out = (TokenDataset.open(tmp_path / "a" / part) for part in ("train", "validation"))
    assert sorted(documents(train) + documents(held_out)) == sorted(documents(dataset))
    assert not set(documents(train)) & set(documents(held_out))
    assert {part: manifest.num_tokens for part, manifest in report.datasets.items()} == {
        "train": train.num_tokens,
        "validation": held_out.num_tokens,
    }
    assert report.num_tokens == dataset.num_tokens
    # Other names, other order: the same side.
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, text in enumerate(reversed(documents(dataset))):
        (renamed / f"{number:03}.txt").write_bytes(text.encode())
    build_dataset([renamed], model, tmp_path / "b", validation_fraction=0.3)
    assert sorted(documents(TokenDataset.open(tmp_path / "b/validation"))) == sorted(documents(held_out))


def test_progress_and_what_was_left_out_are_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, data in {"a.txt": b"one", "b.txt": b"\xff", "c.txt": b"", "d.txt": b"two"}.items():
        (texts / name).write_bytes(data)
    seen: list[Progress] = []
    report = build_dataset([texts], tokenizer.path, tmp_path / "out", progress=seen.append)
    assert report.skipped == {"empty": 1, "invalid_utf8": 1}
    assert report.details() == ["  skipped empty: c.txt:1", "  skipped invalid_utf8: b.txt:1: byte 0"]
    assert TokenDataset.open(tmp_path / "out").manifest.skipped == report.skipped
    written = json.loads((tmp_path / "out/build_report.json").read_text())
    assert written["examples"] == {"empty": ["c.txt:1"], "invalid_utf8": ["b.txt:1: byte 0"]}
    assert [state.stage for state in seen] == ["encoding", "writing", "writing"]
    last = seen[-1]
    assert (last.num_files, last.total_files, last.num_bytes, last.total_bytes) == (4, 4, 7, 7)
    assert last.num_tokens == last.new_tokens == report.num_tokens


def test_other_files_beside_the_texts_make_no_other_dataset(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("one")
    build_dataset([tmp_path / "texts"], tokenizer.path, tmp_path / "before")
    (tmp_path / "texts/picture.png").touch()
    report = build_dataset([tmp_path / "texts"], tokenizer.path, tmp_path / "after")
    before, after = (contents(tmp_path / name) for name in ("before", "after"))
    assert before.pop("build_report.json") != after.pop("build_report.json")
    assert before == after
    assert report.skipped == {"unknown_suffix": 1}
    assert report.details() == ["  skipped unknown_suffix: picture.png"]


def test_a_damaged_dataset_is_not_found_again(emails: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    build_dataset([emails], tokenizer.path, tmp_path / "out")
    shard = tmp_path / "out/tokens-00000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"tokens-00000\.bin was changed or damaged"):
        build_dataset([emails], tokenizer.path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": Path(".")}, "--out . is no name of a new folder"),
        ({"out": Path("new/..")}, r"--out new/\.\. is no name of a new folder"),
        ({"out": Path("x" * 250)}, "cannot be made: File name too long"),
        ({"vocab_size": 0}, "vocab_size=0 must be positive"),
        ({"inputs": [Path("x" * 300)]}, "input x+ does not exist"),
        ({"inputs": [Path("/dev/null")]}, "input /dev/null is no regular file"),
    ],
)
def test_a_wrong_request_is_refused(
    emails: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        build_dataset(**{"inputs": [emails], "tokenizer_file": tokenizer.path, "out": Path("out"), **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["validation", "train", "train/manifest.json", "train/sources.jsonl"])
def test_half_a_dataset_is_not_found_again(emails: Path, tokenizer: Tokenizer, tmp_path: Path, missing: str) -> None:
    build_dataset([emails], tokenizer.path, tmp_path / "out", validation_fraction=0.3)
    path = tmp_path / "out" / missing
    (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    with pytest.raises(UserError, match="out exists already and holds something else"):
        build_dataset([emails], tokenizer.path, tmp_path / "out", validation_fraction=0.3)


def test_the_same_build_again_finds_its_dataset(emails: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    first = build_dataset([emails], tokenizer.path, tmp_path / "out", validation_fraction=0.3)
    again = build_dataset([emails], tokenizer.path, tmp_path / "out", validation_fraction=0.3)
    assert again.was_there
    assert (again.datasets, again.skipped) == (first.datasets, first.skipped)
    copy = Path(shutil.copytree(emails, tmp_path / "copy"))
    build_dataset([copy], tokenizer.path, tmp_path / "of_copy")
    assert build_dataset([copy], tokenizer.path, tmp_path / "of_copy").was_there
    text = (copy / "utils.py").read_bytes()
    (copy / "utils.py").write_bytes(text[:-2] + b"#\n")  # of the same size
    with pytest.raises(UserError, match="of_copy exists already and holds something else"):
        build_dataset([copy], tokenizer.path, tmp_path / "of_copy")
    before = contents(tmp_path)
    for changed in ({"validation_fraction": 0.2}, {"validation_fraction": 0.3, "shuffle_seed": 1}):
        with pytest.raises(UserError, match="out exists already and holds something else"):
            build_dataset([emails], tokenizer.path, tmp_path / "out", **changed)
    assert contents(tmp_path) == before


def test_datasets_of_before_are_found(tmp_path: Path) -> None:
    """The digest that this build had on 2026-11-24. Another means that everybody's datasets are "something else"."""
    np.arange(100, dtype="<u2").tofile(tmp_path / "tokens.bin")
    reading = Reading(separator_id=0)
    build_dataset([tmp_path / "tokens.bin"], None, tmp_path / "out", reading=reading, vocab_size=100)
    build = json.loads((tmp_path / "out/build_report.json").read_text())["build"]
    assert build == "683cfbe9df54121e8141400379017e6ea13401a00b0c85ba0d2e5aa278cfed38"


def test_an_interrupted_build_goes_on(
    emails: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_BLOCK_BYTES", 1 << 14)
    build_dataset([emails], tokenizer.path, tmp_path / "whole", validation_fraction=0.3)
    seen = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset([emails], tokenizer.path, tmp_path / "out", validation_fraction=0.3, progress=interrupt)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"out is not finished: \.out\.partial .* run the same"):
        TokenDataset.open(tmp_path / "out")
    last = []
    build_dataset([emails], tokenizer.path, tmp_path / "out", validation_fraction=0.3, progress=last.append)
    assert 0 < seen[-1].new_bytes == last[-1].num_bytes - last[-1].new_bytes
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_a_failing_encoder_leaves_no_dataset(
    emails: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SentencePieceTokenizer, text: str) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(SentencePieceTokenizer, "encode", fail)
    with pytest.raises(MemoryError):
        build_dataset([emails], tokenizer.path, tmp_path / "out", num_workers=1)
    assert not (tmp_path / "out").exists()


def test_a_target_taken_meanwhile_is_left_alone(emails: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def take(progress: Progress) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/theirs").write_text("x")

    with pytest.raises(UserError, match="cannot make"):
        build_dataset([emails], tokenizer.path, tmp_path / "out", progress=take)
    assert contents(tmp_path / "out") == {"theirs": b"x"}


def test_a_full_disk_is_told_and_what_is_done_is_kept(
    emails: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_BLOCK_BYTES", 1 << 14)
    sizes = []

    def write(self: encode.Encoder, *arguments: object) -> object:
        if len(sizes) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        sizes.append(1)
        return real(self, *arguments)

    real = encode.Encoder.write
    monkeypatch.setattr(encode.Encoder, "write", write)
    with pytest.raises(UserError, match=r"there is no space left for .*\.out\.partial, which needs twice .*it goes on"):
        build_dataset([emails], tokenizer.path, tmp_path / "out", num_workers=1)
    assert len(list(tmp_path.glob(".out.partial/units/*/*.unit"))) == 5


def test_a_killed_worker_is_told(
    emails: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_BLOCK_BYTES", 1 << 14)

    def kill(progress: Progress) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(UserError, match=r"ended too early, .* fewer than --workers 2"):
        build_dataset([emails], tokenizer.path, tmp_path / "out", num_workers=2, progress=kill)


def test_a_refused_build_removes_only_what_it_made(
    emails: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="texts need a tokenizer"):
        build_dataset([emails], None, tmp_path / "a/b/out")
    assert not list(tmp_path.iterdir())

    def meanwhile(*arguments: object) -> None:
        (tmp_path / "a/other").mkdir(parents=True)
        raise UserError("refused")

    monkeypatch.setattr("looplm.data.writer.encode_groups", meanwhile)
    with pytest.raises(UserError, match="refused"):
        build_dataset([emails], None, tmp_path / "a/b/out")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "other"]


def test_two_builds_of_one_target_do_not_meet(emails: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    refused = []

    def build_too(progress: Progress) -> None:
        with pytest.raises(UserError, match="out is being built by another process") as error:
            build_dataset([emails], tokenizer.path, tmp_path / "out")
        refused.append(error)

    build_dataset([emails], tokenizer.path, tmp_path / "out", progress=build_too)
    assert refused
    assert TokenDataset.open(tmp_path / "out").num_documents


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 7}, "vocab_size=7 is not the 600"),
        ({"bos": "<pad>"}, "--bos '<pad>' is not the bos piece"),
        ({"tokenizer_file": None}, "texts need a tokenizer; give --tokenizer"),
        ({"reading": Reading(template="{prompt}{answer}")}, "say which with --examples"),
        ({"reading": Reading(examples="pairs", template="{answer}")}, "must hold {prompt} and then {answer}"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 must be"),
        ({"validation_fraction": -0.1}, "validation_fraction=-0.1 must be"),
        ({"validation_fraction": 1e-9}, "leaves the validation part empty"),
        ({"validation_fraction": 1 - 1e-9}, "leaves the train part empty"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"tokenizer_file": Path("nowhere.model")}, r"nowhere\.model"),
        ({"inputs": [Path("nowhere")]}, "nowhere does not exist"),
    ],
)
def test_bad_arguments(emails: Path, tokenizer: Tokenizer, tmp_path: Path, arguments: dict, message: str) -> None:
    good = {"inputs": [emails], "tokenizer_file": tokenizer.path, "out": tmp_path / "out", "num_workers": 1}
    with pytest.raises(UserError, match=message):
        build_dataset(**(good | arguments))
    assert not list(tmp_path.iterdir())


def test_token_type_follows_the_vocabulary() -> None:
    assert [token_dtype(size).itemsize for size in (256, 65536, 65537)] == [2, 2, 4]
