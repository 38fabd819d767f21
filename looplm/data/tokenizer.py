"""A SentencePiece tokenizer whose round trip is exact: train it, load it, encode and decode.

Exact means decode(encode(text)) == text for any text, so nothing is normalised, stripped or prefixed, bytes stand in
for characters outside the vocabulary, and newline and tab are pieces of their own. Runs of spaces become pieces too,
which is what makes indented code short. Deliberately absent: chat templates, special pieces beyond bos, eos, unk and
pad, and other tokenizer formats.
"""

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece

from looplm.errors import UserError

TOKENIZER_FILE = "tokenizer.model"

# SentencePiece writes a space as this character inside pieces, so a real one in the text cannot be a piece.
_SPACE_MARK = "\u2581"
_UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 0, 1, 2, 3
# SentencePiece silently skips sentences longer than its limit; longer lines are cut here instead, none is lost.
_MAX_LINE_CHARS = 4096
# Encoding one long string is up to three times slower than encoding it in pieces that fit the cache.
_CHUNK_CHARS = 1 << 14
# Encodings of this text tell apart tokenizers with equal pieces but other rules for spaces and line ends.
_PROBE = "  A b\n\tc\u00e9  12\r\n \u65e5\u672c\U0001f389 x "


class Tokenizer:
    """A loaded SentencePiece model. Immutable; encoding releases the GIL, so threads run in parallel; pickles."""

    def __init__(self, model: bytes, path: Path) -> None:
        """Parse the bytes of a model file; `path` is only kept for messages. Use `load` to read a file."""
        self.path = path
        try:
            # Empty bytes parse as an empty model without an error.
            processor = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        except RuntimeError:
            processor = None
        if processor is None or processor.vocab_size() == 0:
            raise UserError(f"{path} is not a SentencePiece model; train one with `looplm data tokenizer`")
        self._processor = processor
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int = processor.bos_id()
        """Begin of document, or -1 when the model has none."""
        self.eos_id: int = processor.eos_id()
        """End of document, or -1 when the model has none."""

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Load a model file, or `tokenizer.model` in a folder. Raises UserError if it is missing or broken."""
        path = Path(path)
        if path.is_dir():
            path = path / TOKENIZER_FILE
        try:
            model = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read the tokenizer {path}: {error.strerror}; give an existing model file"
            ) from None
        return cls(model, path)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, (num_tokens,) int32, without bos and eos. Raises UserError for half a surrogate."""
        if self._splits_freely and (len(text) > _CHUNK_CHARS or _SPACE_MARK in text):
            return np.concatenate([np.zeros(0, np.int32), *self._encode_in_parts(text)])
        return self._encode_part(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return `encode` of every text, in order."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; bos, eos and pad give nothing. Raises UserError for an id that is no piece."""
        return self._processor.decode(self._checked(ids))

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the text of every token on its own, for display; bytes of a split character become U+FFFD."""
        return [self._surface(i) for i in self._checked(ids)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the tokenizer does: pieces, ids, scores, types and rules for white space.

        Not of the file: that holds training options which change nothing. Equal fingerprints give equal ids.
        """
        p = self._processor
        digest = hashlib.sha256()
        for i in range(self.vocab_size):
            kind = (p.is_unknown(i), p.is_control(i), p.is_byte(i), p.is_unused(i))
            digest.update(repr((i, p.id_to_piece(i), p.get_score(i), kind)).encode())
        digest.update(repr((self.bos_id, self.eos_id, p.unk_id(), p.pad_id(), p.encode(_PROBE))).encode())
        return digest.hexdigest()

    @cached_property
    def _splits_freely(self) -> bool:
        """Whether text may be encoded line by line: no piece spans a newline and no prefix is put before a text."""
        p = self._processor
        if any("\n" in p.id_to_piece(i) for i in range(self.vocab_size) if i != p.piece_to_id("\n")):
            return False
        if not all(p.is_byte(i) for i in self._space_mark_ids):
            return False
        lines = _PROBE.splitlines(keepends=True)
        return (
            p.encode(_PROBE) == [i for line in lines for i in p.encode(line)] and p.decode(p.encode(_PROBE)) == _PROBE
        )

    @cached_property
    def _space_mark_ids(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    def _encode_in_parts(self, text: str) -> Iterator[np.ndarray]:
        for number, part in enumerate(text.split(_SPACE_MARK)):
            if number:
                yield np.asarray(self._space_mark_ids, np.int32)
            start = 0
            while start < len(part):
                # After the last newline of a chunk; a longer line stays whole, because only newlines are safe cuts.
                end = part.rfind("\n", start, start + _CHUNK_CHARS) + 1
                if end == 0:
                    end = part.find("\n", start) + 1 if start + _CHUNK_CHARS < len(part) else len(part)
                end = end or len(part)
                yield self._encode_part(part[start:end])
                start = end

    def _encode_part(self, text: str) -> np.ndarray:
        try:
            return self._processor.encode(text, return_type="numpy")
        except RuntimeError:
            if text.encode("utf-8", "replace").decode() == text:
                raise
            raise UserError("the text holds half of a surrogate pair, which UTF-8 lacks; read it as UTF-8") from None

    def _surface(self, i: int) -> str:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            byte = int(piece[3:5], 16)
            return chr(byte) if byte < 0x80 else "\ufffd"
        return piece.replace(_SPACE_MARK, " ")

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        array = np.asarray(ids, np.int64).reshape(-1)
        bad = array[(array < 0) | (array >= self.vocab_size)]
        if bad.size:
            raise UserError(
                f"token id {bad[0]} is not one of the {self.vocab_size} pieces of {self.path}; "
                "use the tokenizer the tokens were made with"
            )
        return array.tolist()


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    out: Path,
    *,
    model_type: Literal["bpe", "unigram"] = "bpe",
    max_bytes: int | None = None,
    num_threads: int = 4,
    overwrite: bool = False,
) -> Path:
    """Train a tokenizer on `texts` and write it to OUT/tokenizer.model, atomically; return that path.

    Reads texts in order and stops after about `max_bytes` bytes of UTF-8; SentencePiece keeps what it read in memory
    several times over. The result is a function of the arguments alone; `num_threads` is a constant by default, not
    the machine's core count, because a unigram vocabulary depends on it. Digits are single pieces. Raises UserError
    when there is no text, when `vocab_size` is too large or too small for it, and, unless `overwrite`, when there is a
    tokenizer already: datasets and runs made with it would no longer fit.
    """
    if vocab_size < 1:
        raise UserError(f"vocab_size={vocab_size} must be positive; 4096 suits a few megabytes of text")
    if not overwrite and (out / TOKENIZER_FILE).exists():
        raise UserError(f"output {out / TOKENIZER_FILE} exists already; remove it or choose another folder")
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
        "user_defined_symbols": ["\n", "\t"],
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
            for line in text.replace(_SPACE_MARK, "\t").split("\n"):
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
    out.mkdir(parents=True, exist_ok=True)
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
