"""Train a SentencePiece tokenizer whose round trip is exact, and write it atomically.

Nothing is normalised, stripped or prefixed, bytes stand in for characters outside the vocabulary, and newline and tab
are pieces of their own. Runs of spaces become pieces too, which is what makes indented code short.
"""

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from looplm.data.folder import make_folder, obstacle
from looplm.data.tokenizer.sentencepiece import SPACE_MARK, TOKENIZER_FILE
from looplm.errors import UserError

_UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 0, 1, 2, 3
_OWN = {"<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))}
# SentencePiece silently skips sentences longer than its limit; longer lines are cut here instead, none is lost.
_MAX_LINE_CHARS = 4096


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    out: Path,
    *,
    model_type: str = "bpe",
    symbols: Sequence[str] = (),
    max_bytes: int | None = None,
    num_threads: int = 4,
    overwrite: bool = False,
) -> Path:
    """Train a tokenizer on `texts` and write it to OUT/tokenizer.model, atomically; return that path.

    Reads texts in order and stops after about `max_bytes` bytes of UTF-8; SentencePiece keeps what it read in memory
    several times over. The result is a function of the arguments alone; `num_threads` is a constant by default, not
    the machine's core count, because a unigram vocabulary depends on it. Digits are single pieces. `model_type` is bpe
    or unigram; each of `symbols` becomes a piece that is never cut, wherever it stands in a text. Raises UserError
    when there is no text, when `vocab_size` is too large or too small for it, and, unless `overwrite`, when there is a
    tokenizer already: datasets and runs made with it would no longer fit.
    """
    if not 1 <= vocab_size < 1 << 31:
        raise UserError(f"vocab_size={vocab_size} must be positive and below 2**31; 4096 suits a few megabytes of text")
    if model_type not in ("bpe", "unigram"):
        raise UserError(f"model_type={model_type!r} is not known; use bpe or unigram")
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"max_bytes={max_bytes} must be positive; leave it out to read all")
    for symbol in symbols:
        if symbol in _OWN or "\n" in symbol:
            raise UserError(f"symbol {symbol!r} is a piece of every tokenizer, or holds a line end; give another text")
        if not symbol or symbol.isspace() or SPACE_MARK in symbol or symbols.count(symbol) > 1:
            raise UserError(f"symbol {symbol!r} must be some text, and given once")
    if not overwrite and (out / TOKENIZER_FILE).exists():
        raise UserError(f"output {out / TOKENIZER_FILE} exists already; remove it or choose another folder")
    if reason := obstacle(out / TOKENIZER_FILE):
        raise UserError(f"--out {out} cannot be written: {reason}; give another folder")
    lines = _Lines(texts, max_bytes)
    options: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "num_threads": num_threads,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "user_defined_symbols": ["\n", "\t", *(symbol.replace(" ", SPACE_MARK) for symbol in symbols)],
        "max_sentence_length": 8 * _MAX_LINE_CHARS,
        "unk_id": _UNK_ID,
        "bos_id": _BOS_ID,
        "eos_id": _EOS_ID,
        "pad_id": _PAD_ID,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    except RuntimeError as error:
        # What the iterator raised came through C++ as a message.
        raise (lines.error or _explain(str(error), vocab_size, lines)) from error
    return _write_atomically(out, model.getvalue())


class _Lines:
    """The lines of the texts without their newlines, how many bytes of them were read, and what reading raised."""

    def __init__(self, texts: Iterable[str], max_bytes: int | None) -> None:
        self._texts = texts
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._lines()
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise

    def _lines(self) -> Iterator[str]:
        for text in self._texts:
            # The mark would be learned as a space. Tab is the trainer's word boundary.
            for line in text.replace(SPACE_MARK, "\t").split("\n"):
                if self._max_bytes is not None and self.num_bytes >= self._max_bytes:
                    return
                self.num_bytes += len(line.encode("utf-8", "replace"))
                for start in range(0, len(line), _MAX_LINE_CHARS):
                    yield line[start : start + _MAX_LINE_CHARS]


def _explain(message: str, vocab_size: int, lines: _Lines) -> Exception:
    """Turn SentencePiece's message into a UserError with the remedy; an unknown message stays what it is."""
    if lines.num_bytes == 0 or "sentences_.empty()" in message:
        return UserError("there is no text to train a tokenizer on; give files with text in them")
    if found := re.search(r"too high.*<= (\d+)", message):
        return UserError(
            f"vocab_size={vocab_size} is too large for {lines.num_bytes} bytes of text; "
            f"use at most {found[1]}, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"vocab_size={vocab_size} is too small: bytes, special pieces and the characters of the text need "
            f"{found[1]}; use at least {found[1]}"
        )
    return RuntimeError(message)


def _write_atomically(out: Path, model: bytes) -> Path:
    make_folder(out, out)
    target = out / TOKENIZER_FILE
    descriptor, partial = tempfile.mkstemp(dir=out, prefix=".tokenizer.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(model)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)  # mkstemp makes it private to the user
        Path(partial).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(partial).unlink()
    return target
