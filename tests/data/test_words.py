"""Word by word or at once: SentencePiece itself says what the ids are."""

import io
import json as a_package
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from looplm.data.tokenizer import Tokenizer, words
from looplm.data.tokenizer.sentencepiece import SentencePieceTokenizer
from looplm.data.tokenizer.words import Words

SOURCE = "".join(path.read_text("utf-8") for path in sorted(Path(a_package.__file__).parent.glob("*.py")))
SYMBOLS = ["\n", "\t"]
RULES = "31 2F 37\tBD\n"
"""1/7 becomes one half."""
OURS = {
    "model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    "add_dummy_prefix": False, "allow_whitespace_only_pieces": True, "split_digits": True,
    "user_defined_symbols": SYMBOLS,
}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "ours": (OURS, True),
    "letters and signs in one piece": ({**OURS, "split_by_unicode_script": False}, True),
    "symbols": ({**OURS, "user_defined_symbols": [*SYMBOLS, "<|x|>", "\u2581y", "ab", "._"]}, True),
    "a symbol with a space inside": ({**OURS, "user_defined_symbols": [*SYMBOLS, "a\u2581b"]}, False),
    "pieces over spaces": ({**OURS, "split_by_whitespace": False}, False),
    "signs joined by a rule of its own": ({**OURS, "normalization_rule_tsv": RULES}, False),
    "characters joined": ({**OURS, "normalization_rule_name": "nfkc"}, False),
    "a space before the text": ({**OURS, "add_dummy_prefix": True}, False),
    "unigram": ({**OURS, "model_type": "unigram"}, False),
}


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SentencePieceTokenizer, bool]:
    options, by_words = MODELS[request.param]
    if rules := options.get("normalization_rule_tsv"):
        path = tmp_path_factory.mktemp("rules") / "rules.tsv"
        path.write_text(rules)
        options = {**options, "normalization_rule_tsv": str(path)}
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE.split("\n")), model_writer=file, vocab_size=700, byte_fallback=True,
        minloglevel=2, **options,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer({"tokenizer.model": file.getvalue()}, Path("tokenizer.model"))
    return tokenizer, by_words


def _by_words(tokenizer: SentencePieceTokenizer) -> Words | None:
    owner = getattr(tokenizer._ids, "__self__", None)
    return owner if isinstance(owner, Words) else None


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from("ab_ y./<|x>\n\t17\u00e9\u0301\ufb01\u65e5\u00a0\0\r"), max_size=40)
    | st.text(max_size=30)
)
@example(text="1/7 y17")
def test_any_text(model: tuple[SentencePieceTokenizer, bool], text: str) -> None:
    tokenizer, _ = model
    # The mark is a space to the library and a character of its own to us.
    text = text.replace("\u2581", "")
    np.testing.assert_array_equal(tokenizer.encode(text), tokenizer._processor.encode(text))


def test_a_long_text(model: tuple[SentencePieceTokenizer, bool]) -> None:
    tokenizer, by_words = model
    assert (_by_words(tokenizer) is not None) == by_words
    expected = tokenizer._processor.encode(SOURCE)
    for _ in range(2):  # from the model, then from memory
        np.testing.assert_array_equal(tokenizer.encode(SOURCE), expected)


def test_memory_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MAX_WORDS", 20)
    again = type(tokenizer)(tokenizer.files, tokenizer.path)
    expected = again._processor.encode(SOURCE)
    np.testing.assert_array_equal(again.encode(SOURCE), expected)
    kept = _by_words(again)
    assert kept is not None
    assert 0 < len(kept) <= 20
    again.encode("x" * 1000)
    assert max(map(len, kept)) <= 64


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (["the", " the", "  ", "\n", "_"], "  the_cat,  x\n\ty", ["  the", "_", "cat", ",", "  x", "\n", "\t", "y"]),
        ([" _the"], "  the_cat,  x\n\ty", ["  the_cat,", "  x", "\n", "\ty"]),
        (["a b"], "a b", None),
        (["a\n"], "a b", None),
    ],
)
def test_cuts(pieces: list[str], text: str, expected: list[str] | None) -> None:
    find: Callable[[str], list[str]] | None = words.word_finder(pieces)
    assert (find and find(text)) == expected
