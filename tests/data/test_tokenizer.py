import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from looplm.data.tokenizer import Tokenizer, train_tokenizer
from looplm.data.tokenizer.sentencepiece import SentencePieceTokenizer
from looplm.errors import UserError

HARD = [
    "",
    " ",
    "plain words",
    "  leading and trailing  ",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m e\u0301",
    "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u4e2d\u6587",
    "\U0001f389\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\tif x:\n\t\treturn   y\t\n",
    "a\r\nb\r\n\r\n",
    "def f():\n    return 12345  \n\n\n",
    "<s> </s> <unk> <pad> <0x41>",
    "\u2581 the \u2581\u2581 space mark\u2581",
    "\u2585 \u2047 \ufeff \u2028 \x00 \x7f",
    "x" * 50_000 + "\n" + "  y\n" * 20_000 + "\u2581z",
]


def texts() -> list[str]:
    return [path.read_text("utf-8") for path in sorted(Path(pickle.__file__).parent.glob("json/*.py"))]


@pytest.mark.parametrize("text", HARD)
def test_round_trip_is_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_round_trip_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_in_parts_changes_nothing(tokenizer: Tokenizer) -> None:
    text = "\n".join(texts() * 3)
    assert len(text) > 3 * (1 << 14)
    assert tokenizer._splits_freely
    np.testing.assert_array_equal(tokenizer.encode(text), tokenizer._processor.encode(text))


def test_runs_of_spaces_and_digits(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("        ")) == 1
    assert tokenizer.pieces(tokenizer.encode("1234")) == ["1", "2", "3", "4"]


def test_pieces_are_the_text(tokenizer: Tokenizer) -> None:
    text = "def f(x):\n\treturn  x # na"
    assert "".join(tokenizer.pieces(tokenizer.encode(text))) == text
    assert tokenizer.pieces(tokenizer.encode("\U0001f389")) == ["\ufffd"] * 4
    assert tokenizer.pieces([tokenizer.bos_id, tokenizer.eos_id]) == ["<s>", "</s>"]


def test_batch_is_one_by_one(tokenizer: Tokenizer) -> None:
    for text, ids in zip(HARD, tokenizer.encode_batch(HARD), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_special_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eos_id]) == "hi"


def test_half_a_surrogate_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode("a\udce9b")


@pytest.mark.parametrize("bad", [-1, 600])
def test_an_unknown_id_is_named(tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(UserError, match=rf"token id {bad} .* 600 pieces"):
        tokenizer.decode([5, bad])


def test_training_is_deterministic_and_fingerprint_follows_the_pieces(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one = Tokenizer.load(train_tokenizer(texts(), 600, tmp_path / "one", num_threads=1))
    other = Tokenizer.load(train_tokenizer(texts(), 601, tmp_path / "other"))
    assert one.fingerprint == tokenizer.fingerprint == pickle.loads(pickle.dumps(tokenizer)).fingerprint
    assert one.fingerprint != other.fingerprint
    assert Tokenizer.load(tmp_path / "one").fingerprint == one.fingerprint


def test_fingerprint_sees_rules_for_spaces(tokenizer: Tokenizer) -> None:
    model = tokenizer.path.read_bytes()
    # Field 3 of the normalizer is add_dummy_prefix: false.
    assert model.count(b"\x18\x00\x20\x00") == 1
    files = {"tokenizer.model": model.replace(b"\x18\x00\x20\x00", b"\x18\x01\x20\x00")}
    changed = SentencePieceTokenizer(files, tokenizer.path)
    assert [changed._processor.id_to_piece(i) for i in range(600)] == [
        tokenizer._processor.id_to_piece(i) for i in range(600)
    ]
    assert changed.fingerprint != tokenizer.fingerprint
    assert not changed._splits_freely


def test_fingerprint_sees_normalisation() -> None:
    def trained(rule: str) -> SentencePieceTokenizer:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter("".join(texts()).splitlines()), model_writer=model, vocab_size=600,
            model_type="bpe", byte_fallback=True, normalization_rule_name=rule, minloglevel=2,
        )  # fmt: skip
        return SentencePieceTokenizer({"tokenizer.model": model.getvalue()}, Path("tokenizer.model"))

    plain, joined = trained("identity"), trained("nfkc")
    assert [plain._processor.id_to_piece(i) for i in range(600)] == [
        joined._processor.id_to_piece(i) for i in range(600)
    ]
    assert plain.encode("\ufb01le").tolist() != joined.encode("\ufb01le").tolist()
    assert plain.fingerprint != joined.fingerprint


def test_max_bytes_stops_reading(tmp_path: Path) -> None:
    read = []

    def lines():
        for number in range(1000):
            read.append(number)
            yield f"line {number} of the text, with words in it\n" * 10

    train_tokenizer(lines(), 300, tmp_path, max_bytes=10_000)
    assert 20 <= len(read) <= 40


def test_long_lines_are_not_lost(tmp_path: Path) -> None:
    path = train_tokenizer(["zebra " * 100_000], 275, tmp_path)
    assert "zebra" in "".join(Tokenizer.load(path).pieces(range(275)))


def test_unigram(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(train_tokenizer(texts(), 600, tmp_path, model_type="unigram"))
    assert tokenizer.vocab_size == 600
    for text in HARD:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # Scores of a unigram model are log probabilities; those of a BPE model are ranks.
    scores = [tokenizer._processor.get_score(i) for i in range(300, 600)]
    assert any(score != int(score) for score in scores)


def test_symbols_are_one_piece_each(tmp_path: Path) -> None:
    symbols = ["<|user|>", "<|end of turn|>"]
    tokenizer = Tokenizer.load(train_tokenizer(texts(), 600, tmp_path, symbols=symbols))
    ids = [tokenizer.token_id(symbol) for symbol in symbols]
    assert None not in ids
    text = "a<|user|>b <|end of turn|>\n"
    encoded = tokenizer.encode(text)
    assert [i for i in encoded.tolist() if i in ids] == ids
    assert tokenizer.decode(encoded) == text
    assert tokenizer.token_id("no such piece") is None
    assert tokenizer.token_id("<s>") == tokenizer.bos_id
    assert tokenizer.mark_ids == {*ids, *(tokenizer.token_id(name) for name in ("<s>", "</s>", "<pad>"))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "word"}, "model_type='word' is not known; use bpe or unigram"),
        ({"symbols": ["x", "x"]}, "symbol 'x' must be some text, and given once"),
        ({"symbols": [" "]}, "symbol ' ' must be some text"),
    ],
)
def test_a_wrong_request_is_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train_tokenizer(["hello world"], 280, tmp_path, **options)


@pytest.mark.parametrize("nothing", [[], [""], ["\n\n"]])
def test_no_text(nothing: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(nothing, 400, tmp_path)
    assert not list(tmp_path.iterdir())


def test_vocabulary_too_large_says_the_largest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"vocab_size=4096 is too large .* use at most (\d+)") as error:
        train_tokenizer(["hello world"], 4096, tmp_path)
    largest = int(str(error.value).split("at most ")[1].split(",")[0])
    assert Tokenizer.load(train_tokenizer(["hello world"], largest, tmp_path)).vocab_size == largest
    assert capfd.readouterr() == ("", "")


def test_vocabulary_too_small_says_the_smallest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab_size=100 is too small.* at least (\d+)") as error:
        train_tokenizer(["hello world"], 100, tmp_path)
    smallest = int(str(error.value).rsplit(" ", 1)[1])
    assert Tokenizer.load(train_tokenizer(["hello world"], smallest, tmp_path)).vocab_size == smallest
    with pytest.raises(UserError, match="vocab_size=0 must be positive"):
        train_tokenizer(["hello world"], 0, tmp_path)


def test_an_error_of_the_texts_comes_through(tmp_path: Path) -> None:
    def broken():
        yield "some text\n" * 100
        raise UserError("the culprit")

    with pytest.raises(UserError, match="the culprit"):
        train_tokenizer(broken(), 300, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 100, None])
def test_broken_model_file(content: bytes | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.model"):
        Tokenizer.load(path)
    assert capfd.readouterr() == ("", "")
