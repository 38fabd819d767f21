"""What a text goes on with: wherever it is cut between tokens, both sides together are the text."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from looplm.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the decoder reads a line", "one  two é日\U0001f389 end", "def f():\n\treturn x\n"]
MARKS = ["<unk>", "<s>", "</s>"]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Without characters beyond ASCII: these go by their bytes."""
    text = (Path(json.__file__).parent / "decoder.py").read_text("utf-8")
    return [line for line in text.splitlines() if line.isascii()]


def own(folder: Path, lines: list[str]) -> None:
    train_tokenizer(["\n".join(lines)], 400, folder)


def with_a_space_before_every_text(folder: Path, lines: list[str]) -> None:
    """As SentencePiece does by default, and Llama's tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=400, byte_fallback=True, minloglevel=2,
        remove_extra_whitespaces=False, normalization_rule_name="identity", user_defined_symbols=["\n", "\t"],
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def save(folder: Path, rules: tokenizers.Tokenizer, trainer: object, lines: list[str]) -> None:
    rules.train_from_iterator(lines, trainer)
    rules.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')


def byte_level(folder: Path, lines: list[str]) -> None:
    rules = tokenizers.Tokenizer(models.BPE())
    rules.pre_tokenizer, rules.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    save(folder, rules, trainer, lines)


def metaspace(folder: Path, lines: list[str]) -> None:
    rules = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    rules.pre_tokenizer = pre_tokenizers.Metaspace()
    rules.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = [*MARKS, *(f"<0x{byte:02X}>" for byte in range(256))]
    save(folder, rules, trainers.BpeTrainer(vocab_size=600, special_tokens=names, show_progress=False), lines)
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"] = stored["added_tokens"][: len(MARKS)]
    (folder / "tokenizer.json").write_text(json.dumps(stored))


def prepended(folder: Path, lines: list[str]) -> None:
    """Llama's, as it was converted for long: a normalizer writes the space."""
    metaspace(folder, lines)
    rules = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    rules.pre_tokenizer = None
    rules.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("make", [own, with_a_space_before_every_text, byte_level, metaspace, prepended])
def test_both_sides_of_any_cut_are_the_text(
    make: Callable[[Path, list[str]], None], lines: list[str], tmp_path: Path
) -> None:
    make(tmp_path, lines)
    tokenizer = Tokenizer.load(tmp_path)
    for text in TEXTS:
        ids = [tokenizer.bos_id, *tokenizer.encode(text).tolist()]
        for cut in range(1, len(ids) + 1):
            before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")  # the bytes of a split character are no text yet
            assert before + tokenizer.continuation(ids[:cut], ids[cut:]) == text


def test_a_word_keeps_the_space_before_it(lines: list[str], tmp_path: Path) -> None:
    with_a_space_before_every_text(tmp_path, lines)
    tokenizer = Tokenizer.load(tmp_path)
    before, both = tokenizer.encode("the").tolist(), tokenizer.encode("the string").tolist()
    assert both[: len(before)] == before
    assert tokenizer.decode(both[len(before) :]) == "string", "the reason why a continuation is not its own text"
    assert tokenizer.continuation(before, both[len(before) :]) == " string"
