import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from looplm.data.dataset import TokenDataset
from looplm.data.tokenizer import Tokenizer, train_tokenizer
from looplm.errors import UserError


@pytest.fixture
def copy(dataset: TokenDataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.path, tmp_path / "copy"))


def change_manifest(folder: Path, **fields: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(signed(manifest | fields)))


def signed(manifest: dict) -> dict:
    """With the digest that it should have: of everything else, as compact JSON with sorted keys."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return rest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def test_tokens_across_shards(write_dataset) -> None:
    whole, split = write_dataset([40, 3, 57]), write_dataset([40, 3, 57], shard_bytes=2 * 7)
    assert len(split.manifest.entries("tokens-")) == 15
    raw = np.fromfile(whole.path / "tokens-00000.bin", "<u2")
    for start in range(101):
        for stop in range(start, 101):
            np.testing.assert_array_equal(split.tokens(start, stop), raw[start:stop])
            np.testing.assert_array_equal(whole.tokens(start, stop), raw[start:stop])
    for start, stop in [(-1, 5), (5, 4), (0, 101)]:
        with pytest.raises(IndexError):
            whole.tokens(start, stop)


def test_pickles_without_its_maps(dataset: TokenDataset) -> None:
    dataset.tokens(0, 10)
    data = pickle.dumps(dataset)
    assert len(data) < 5_000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.tokens(0, 100), dataset.tokens(0, 100))
    assert again.fingerprint == dataset.fingerprint


def test_fingerprint_follows_the_content(write_dataset) -> None:
    assert write_dataset([5, 6]).fingerprint == write_dataset([5, 6]).fingerprint
    assert write_dataset([5, 6]).fingerprint != write_dataset([5, 6], seed=1).fingerprint


def test_verify_names_the_changed_file(copy: Path) -> None:
    TokenDataset.open(copy).verify()
    data = bytearray((copy / "tokens-00000.bin").read_bytes())
    data[100] ^= 1
    (copy / "tokens-00000.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"tokens-00000\.bin was changed"):
        TokenDataset.open(copy).verify()


def test_checks_of_tokenizer_and_vocabulary(dataset: TokenDataset, tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset.check_tokenizer(tokenizer)
    dataset.check_vocab(600)
    with pytest.raises(UserError, match=r"model\.vocab_size=599 is below the 600 pieces"):
        dataset.check_vocab(599)
    other = Tokenizer.load(train_tokenizer(["hello world"], 280, tmp_path))
    with pytest.raises(UserError, match="another tokenizer"):
        dataset.check_tokenizer(other)


def test_an_exchanged_tokenizer_is_noticed(copy: Path, tmp_path: Path) -> None:
    dataset = TokenDataset.open(copy)
    train_tokenizer(["hello world"], 280, copy, overwrite=True)
    with pytest.raises(UserError, match="not the tokenizer"):
        dataset.tokenizer()
    with pytest.raises(UserError, match=r"tokenizer\.model has"):
        TokenDataset.open(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 1}, "format_version=1, and this looplm reads 2; build the dataset again"),
        ({"num_tokens": 0}, "holds no token"),
        ({"num_tokens": 17}, "contradicts itself"),
        ({"num_documents": 3}, "contradicts itself"),
        ({"files": []}, "contradicts itself"),
        ({"files": [{"name": "../x.bin", "size": 1, "sha256": ""}]}, r"files\.0\.name: String should match"),
        ({"dtype": "uint32"}, "contradicts itself"),
        ({"dtype": "float32"}, "dtype"),
        ({"num_tokens": "many"}, "num_tokens"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_manifest(copy: Path, fields: dict, message: str) -> None:
    change_manifest(copy, **fields)
    with pytest.raises(UserError, match=message) as error:
        TokenDataset.open(copy)
    assert "\n" not in str(error.value)


def test_a_manifest_edited_by_hand(copy: Path) -> None:
    path = copy / "manifest.json"
    TokenDataset.open(copy)
    path.write_text(path.read_text().replace('"vocab_size": 600', '"vocab_size": 700'))
    with pytest.raises(UserError, match=r"manifest\.json was edited or damaged"):
        TokenDataset.open(copy)


def test_the_loss_mask_across_shards(write_dataset) -> None:
    masks = [[0, 1, 1], [1] * 5, [0, 0, 0, 1]]
    lengths = [len(mask) for mask in masks]
    whole, split = write_dataset(lengths, masks=masks), write_dataset(lengths, masks=masks, shard_bytes=2 * 5)
    flat = [bit for mask in masks for bit in mask]
    for start in range(12):
        for stop in range(start, 12):
            assert whole.loss_mask(start, stop).tolist() == split.loss_mask(start, stop).tolist() == flat[start:stop]
    assert len(split.manifest.entries("mask-")) == len(split.manifest.entries("tokens-")) == 3
    assert write_dataset(lengths).loss_mask(0, 5) is None
    (split.path / "mask-00001.bin").unlink()
    with pytest.raises(UserError, match=r"mask-00001\.bin is missing"):
        TokenDataset.open(split.path)


def test_broken_json(copy: Path) -> None:
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text()[:100])
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest"):
        TokenDataset.open(copy)


def test_missing_things(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        TokenDataset.open(tmp_path / "nowhere")
    for name in ("p_hopp", "sudokus"):
        with pytest.raises(UserError, match=f"`looplm data build`, or did you mean the task {name[:-1]}\\?$"):
            TokenDataset.open(Path(name))
    with pytest.raises(UserError, match=r"holds copy; name .*copy"):
        TokenDataset.open(tmp_path)
    (copy / "document_bytes.bin").unlink()
    with pytest.raises(UserError, match=r"document_bytes\.bin is missing"):
        TokenDataset.open(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="did not finish"):
        TokenDataset.open(copy)


def test_a_truncated_file(copy: Path) -> None:
    data = (copy / "tokens-00000.bin").read_bytes()
    (copy / "tokens-00000.bin").write_bytes(data[:-2])
    with pytest.raises(UserError, match=rf"tokens-00000\.bin has {len(data) - 2} bytes instead of {len(data)}"):
        TokenDataset.open(copy)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_offsets_that_do_not_increase(copy: Path, place: int) -> None:
    offsets = np.fromfile(copy / "documents.bin", "<u8")
    offsets[place] = offsets[place - 1] + 1 if place == -1 else 10**9
    offsets.tofile(copy / "documents.bin")
    with pytest.raises(UserError, match=r"documents\.bin does not divide"):
        TokenDataset.open(copy)
