"""Small texts from the standard library, a tokenizer trained on them, and datasets made with it."""

import email
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from looplm.data.dataset import TokenDataset
from looplm.data.shard import FolderWriter, token_dtype
from looplm.data.source import Source
from looplm.data.tokenizer import Tokenizer, train_tokenizer
from looplm.data.writer import build_dataset


@pytest.fixture(scope="session")
def emails() -> Path:
    """A folder with 20 or so small files, one of them empty."""
    return Path(email.__file__).parent


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [path.read_text("utf-8") for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    return Tokenizer.load(train_tokenizer(texts, 600, tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def dataset(emails: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """The sources of `email`: 20 or so documents, many windows each."""
    out = tmp_path_factory.mktemp("datasets") / "email"
    build_dataset([emails], tokenizer.path, out, num_workers=1)
    return TokenDataset.open(out)


@pytest.fixture
def write_dataset(tokenizer: Tokenizer, tmp_path: Path):
    """A function that writes a dataset of documents of the given lengths, with random tokens."""

    def write(
        lengths: list[int], seed: int = 0, shard_bytes: int = 1 << 30, masks: list[list[int]] | None = None
    ) -> TokenDataset:
        rng = np.random.default_rng(seed)
        folder = tmp_path / f"dataset-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        has_mask = masks is not None
        with FolderWriter(folder, tokenizer, has_loss_mask=has_mask, shard_bytes=shard_bytes) as writer:
            for number, length in enumerate(lengths):
                tokens = rng.integers(0, tokenizer.vocab_size, length).astype(token_dtype(tokenizer.vocab_size))
                mask = np.asarray(masks[number], np.uint8) if masks is not None else None
                writer.add(tokens, num_bytes=3 * length, sources=(number, 0), mask=mask)
            writer.finish([Source(f"{number}.txt", 3 * length, "0" * 64) for number, length in enumerate(lengths)])
        return TokenDataset.open(folder)

    return write


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A folder with a small byte-level tokenizer.json, whose config names <|end|> as eos and no bos."""
    rules = tokenizers.Tokenizer(tokenizers.models.BPE())
    rules.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [path.read_text("utf-8") for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    rules.train_from_iterator(texts, trainer)
    folder = tmp_path / "hf"
    folder.mkdir()
    rules.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}, "other": 1}))
    return folder
