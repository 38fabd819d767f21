"""SentencePiece models. The round trip of those that `train` makes is exact.

Exact means decode(encode(text)) == text for any text. Deliberately absent: the lattice, sampling of encodings.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from looplm.data.tokenizer.base import FileName, Tokenizer
from looplm.data.tokenizer.words import Words, word_finder
from looplm.errors import UserError

TOKENIZER_FILE: FileName = "tokenizer.model"

# SentencePiece writes a space as this character inside pieces, so a real one in the text cannot be a piece.
SPACE_MARK = "\u2581"
# Encoding one long string is up to three times slower than encoding it in pieces that fit the cache.
_CHUNK_CHARS = 1 << 14
_CONTROL, _USER_DEFINED = 3, 4
# Encodings of this text tell apart tokenizers with equal pieces but other rules for spaces and line ends.
_PROBE = "  A b\n\tc\u00e9  12\r\n \u65e5\u672c\U0001f389 x "


class Piece(NamedTuple):
    """A piece as the model file has it."""

    text: str
    """With the mark of a space."""
    score: float
    kind: int
    """`SentencePiece.Type` of sentencepiece_model.proto: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 a
    byte."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model."""

    file_name = TOKENIZER_FILE

    def __init__(self, files: dict[str, bytes], path: Path) -> None:
        """Parse the bytes of a model file; `path` is only kept for messages."""
        self.files, self.path = files, path
        data = files[self.file_name]
        try:
            # Empty bytes parse as an empty model without an error.
            processor = sentencepiece.SentencePieceProcessor(model_proto=data) if data else None
        except RuntimeError:
            processor = None
        if processor is None or processor.vocab_size() == 0:
            raise UserError(f"{path} is not a SentencePiece model; train one with `looplm data tokenizer`")
        self._processor = processor
        self.vocab_size = processor.vocab_size()
        self.bos_id = processor.bos_id()
        self.eos_id = processor.eos_id()

    def encode(self, text: str) -> np.ndarray:
        if self._splits_freely and (len(text) > _CHUNK_CHARS or SPACE_MARK in text):
            return np.concatenate([np.zeros(0, np.int32), *self._encode_in_parts(text)])
        return self._encode_part(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode(self._checked(ids))

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        return [self._surface(i) for i in self._checked(ids)]

    def token_id(self, name: str) -> int | None:
        i, unk_id = self._processor.piece_to_id(name.replace(" ", SPACE_MARK)), self._processor.unk_id()
        return None if i == unk_id and name != self._processor.id_to_piece(i) else i

    @cached_property
    def mark_ids(self) -> frozenset[int]:
        p, pieces = self._processor, _pieces(self.files[self.file_name])
        kinds = [_fields(piece).get(3) for piece in pieces]
        return frozenset(
            i
            for i, kind in enumerate(kinds)
            if kind in (_CONTROL, _USER_DEFINED) and not p.id_to_piece(i).replace(SPACE_MARK, " ").isspace()
        )

    @cached_property
    def fingerprint(self) -> str:
        """Of pieces, ids, scores, types, normalisation and rules for white space; the file holds more besides."""
        p = self._processor
        digest = hashlib.sha256()
        for i in range(self.vocab_size):
            kind = (p.is_unknown(i), p.is_control(i), p.is_byte(i), p.is_unused(i))
            digest.update(repr((i, p.id_to_piece(i), p.get_score(i), kind)).encode())
        digest.update(repr((self.bos_id, self.eos_id, p.unk_id(), p.pad_id(), p.encode(_PROBE))).encode())
        digest.update(self.rules.normalisation)
        return digest.hexdigest()

    def listed(self) -> list[Piece]:
        """Return all pieces by id."""
        p, messages = self._processor, map(_fields, _pieces(self.files[self.file_name]))
        kinds = [message.get(3, 1) for message in messages]
        return [Piece(p.id_to_piece(i), p.get_score(i), kind) for i, kind in enumerate(kinds)]

    @cached_property
    def rules(self) -> "Rules":
        """Return what the library does not tell of its model."""
        return _rules(self.files[self.file_name])

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
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    def _encode_in_parts(self, text: str) -> Iterator[np.ndarray]:
        """Line by line; the mark of a space goes by its bytes, since its piece would be decoded as a space."""
        for number, part in enumerate(text.split(SPACE_MARK)):
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

    @cached_property
    def _ids(self) -> Callable[[str], np.ndarray]:
        """Encodes a text; word by word where that gives the same."""
        p = self._processor
        if self._splits_freely and self.rules.is_bpe and not self.rules.normalisation:
            pieces = [i for i in range(self.vocab_size) if not (p.is_control(i) or p.is_unknown(i) or p.is_byte(i))]
            find = word_finder(p.id_to_piece(i).replace(SPACE_MARK, " ") for i in pieces)
            if find is not None:
                return Words(find, p.encode).encode
        return partial(p.encode, return_type="numpy")

    def _encode_part(self, text: str) -> np.ndarray:
        try:
            return self._ids(text)
        except RuntimeError:
            if text.encode("utf-8", "replace").decode() == text:
                raise
            raise UserError("the text holds half of a surrogate pair, which UTF-8 lacks; read it as UTF-8") from None

    def _surface(self, i: int) -> str:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            byte = int(piece[3:5], 16)
            return chr(byte) if byte < 0x80 else "\ufffd"
        return piece.replace(SPACE_MARK, " ")


class Rules(NamedTuple):
    """What the library does not tell of its model."""

    is_bpe: bool
    normalisation: bytes
    """Its own rules by which characters are replaced; empty where all stay as they are."""
    adds_space: bool
    """Whether a text begins with a space that it does not have."""
    merges_spaces: bool
    """Whether several spaces count as one."""


def _rules(model: bytes) -> Rules:
    """By numbers of fields, as in sentencepiece_model.proto: its generated module asks for just so new a protobuf."""
    parts = _fields(model)
    trainer, normalizer = (_fields(parts.get(number, b"")) for number in (2, 3))
    return Rules(
        trainer.get(3) == 2, normalizer.get(2, b""), bool(normalizer.get(3, True)), bool(normalizer.get(4, True))
    )


def _pieces(model: bytes) -> list[bytes]:
    """The messages of the pieces, in order."""
    unknown = UnknownFieldSet(Empty.FromString(model))
    return [field.data for field in unknown if field.field_number == 1]


def _fields(message: bytes) -> dict[int, Any]:
    """The last value of every field."""
    unknown = UnknownFieldSet(Empty.FromString(message))
    return {field.field_number: field.data for field in unknown}
