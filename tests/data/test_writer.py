import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from looplm.data import encode, source
from looplm.data.dataset import TokenDataset
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
    assert set(entries) | {"manifest.json"} == set(contents(dataset.path))
    for name, entry in entries.items():
        data = (dataset.path / name).read_bytes()
        assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    lines = [json.loads(line) for line in (dataset.path / "sources.jsonl").read_text().splitlines()]
    assert [line for line, _ in dataset.document_sources.tolist()] == list(range(len(lines)))
    assert all(hashlib.sha256((emails / line["name"]).read_bytes()).hexdigest() == line["sha256"] for line in lines)
    assert str(emails) not in (dataset.path / "manifest.json").read_text()


@pytest.mark.parametrize("num_workers", [2, 5])
def test_bytes_do_not_depend_on_the_workers(
    emails: Path, dataset: TokenDataset, tmp_path: Path, num_workers: int
) -> None:
    report = build_dataset([emails], dataset.path / "tokenizer.model", tmp_path / "out", num_workers=num_workers)
    assert contents(tmp_path / "out") == contents(dataset.path)
    assert report.num_tokens == dataset.num_tokens
    assert report.num_documents == dataset.num_documents


def test_little_is_read_ahead(
    emails: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_MAX_BYTES_AHEAD", 1)
    running: list[int] = []
    real = source.read_file
    monkeypatch.setattr(encode, "read_file", lambda file: running.append(1) or real(file))
    files = source.find_files([emails])
    encoded = encode.encode_files(files, tokenizer, token_dtype(tokenizer.vocab_size), 2)
    next(encoded)
    assert len(running) <= 2
    encoded.close()


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


def test_progress_and_skipped_files_are_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, data in {"a.txt": b"one", "b.txt": b"\xff", "c.txt": b"", "d.txt": b"two"}.items():
        (texts / name).write_bytes(data)
    seen: list[Progress] = []
    report = build_dataset([texts], tokenizer.path, tmp_path / "out", progress=seen.append, num_workers=2)
    assert report.skipped == {"empty": 1, "invalid_utf8": 1}
    assert TokenDataset.open(tmp_path / "out").manifest.skipped == report.skipped
    assert [progress.num_files for progress in seen] == [1, 2, 3, 4]
    assert (seen[-1].num_bytes, seen[-1].total_bytes, seen[-1].num_tokens) == (7, 7, report.num_tokens)


def test_an_empty_folder_may_be_the_target(emails: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    build_dataset([emails], tokenizer.path, tmp_path / "out")
    assert TokenDataset.open(tmp_path / "out").num_documents
    before = contents(tmp_path)
    with pytest.raises(UserError, match="out exists already"):
        build_dataset([emails], tokenizer.path, tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("error", "num_workers"), [(RuntimeError, 1), (KeyboardInterrupt, 2)])
def test_an_interrupted_build_leaves_nothing(
    emails: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    error: type[BaseException],
    num_workers: int,
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.num_files == 7:
            raise error

    with pytest.raises(error):
        build_dataset(
            [emails],
            tokenizer.path,
            tmp_path / "out",
            validation_fraction=0.3,
            num_workers=num_workers,
            progress=interrupt,
        )
    assert not list(tmp_path.iterdir())


def test_a_failing_worker_leaves_nothing(
    emails: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SentencePieceTokenizer, text: str) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(SentencePieceTokenizer, "encode", fail)
    with pytest.raises(MemoryError):
        build_dataset([emails], tokenizer.path, tmp_path / "out", num_workers=2)
    assert not list(tmp_path.iterdir())


def test_a_target_taken_meanwhile_is_left_alone(emails: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def take(progress: Progress) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/theirs").write_text("x")

    with pytest.raises(UserError, match="cannot make"):
        build_dataset([emails], tokenizer.path, tmp_path / "out", progress=take)
    assert contents(tmp_path) == {"out/theirs": b"x"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
