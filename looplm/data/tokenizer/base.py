"""What every tokenizer can do, whatever library is behind it.

Immutable and picklable. Deliberately absent: normalisation of our own; a text goes to the library as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from looplm.data.tokenizer.chat_templates import DEFAULT
from looplm.errors import UserError

FileName = Literal["tokenizer.model", "tokenizer.json"]


class Tokenizer(ABC):
    """A loaded tokenizer. Made by `Tokenizer.load`."""

    file_name: ClassVar[FileName]
    """What its file is called in a dataset or run folder."""
    files: dict[str, bytes]
    """All that has to be kept of it: this file, and for Hugging Face the small one with the names of special tokens."""
    path: Path
    """Where the file was; for messages."""
    vocab_size: int
    """Every id is below this."""
    bos_id: int
    """Begin of document, or -1 when there is none."""
    eos_id: int
    """End of document, or -1 when there is none."""

    @staticmethod
    def load(path: Path | str, *, bos: str | None = None, eos: str | None = None) -> "Tokenizer":
        """Load a SentencePiece model, a Hugging Face tokenizer.json, or the one of them that a folder holds.

        `bos` and `eos` name the tokens that begin and end a document, where the tokenizer's files do not say so or
        others are wanted. Raises UserError if it is missing or broken or has no such token.
        """
        from looplm.data.tokenizer.huggingface import HuggingFaceTokenizer
        from looplm.data.tokenizer.sentencepiece import SentencePieceTokenizer

        kinds = (SentencePieceTokenizer, HuggingFaceTokenizer)
        path = Path(path)
        if path.is_dir():
            found = [path / kind.file_name for kind in kinds if (path / kind.file_name).is_file()]
            if len(found) > 1:
                raise UserError(f"the folder {path} holds two tokenizers; name {found[0]} or {found[1]}")
            path = found[0] if found else path / SentencePieceTokenizer.file_name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read the tokenizer {path}: {error.strerror}; give a tokenizer.model or tokenizer.json"
            ) from None
        if data.lstrip()[:1] == b"{":
            return HuggingFaceTokenizer.read(data, path, bos=bos, eos=eos)
        tokenizer = SentencePieceTokenizer({SentencePieceTokenizer.file_name: data}, path)
        for kind, name, own in (("bos", bos, tokenizer.bos_id), ("eos", eos, tokenizer.eos_id)):
            if name is not None and tokenizer.token_id(name) != own:
                # The model says which pieces these are, and a second opinion would be lost with the next copy of it.
                raise UserError(f"--{kind} {name!r} is not the {kind} piece of {path}; leave it out")
        return tokenizer

    @staticmethod
    def find(folder: Path) -> "Tokenizer | None":
        """Load the tokenizer of a run folder; None if it has none, like the token files that the run was trained on."""
        names: tuple[FileName, ...] = ("tokenizer.model", "tokenizer.json")
        return Tokenizer.load(folder) if any((folder / name).is_file() for name in names) else None

    @property
    def template_tokens(self) -> dict[str, str]:
        """What special tokens are called in a Jinja template; names are empty where a text cannot name tokens."""
        return {"bos_token": "", "eos_token": ""}

    @property
    def special_names(self) -> tuple[str, ...]:
        """Names that mean special tokens in a template."""
        return ()

    @property
    @abstractmethod
    def mark_ids(self) -> frozenset[int]:
        """Ids of tokens that stand for a name as a whole, and never for a part of a text that does not hold it."""

    @property
    def chat_templates(self) -> dict[str, str]:
        """The Jinja templates that came with it, by name; a single one is called `default`."""
        return {}

    @property
    def chat_template(self) -> str | None:
        """The one for chats in general."""
        return self.chat_templates.get(DEFAULT)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.files, self.path)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, (num_tokens,) int32, without bos and eos; nothing in a text is a special token.

        Raises UserError for half a surrogate.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return `encode` of every text, in order."""
        return [self.encode(text) for text in texts]

    def encode_template(self, text: str) -> np.ndarray:
        """Return the ids of a template's own text, in which the names of special tokens mean those tokens."""
        return self.encode(text)

    def encode_document(self, parts: Sequence[str]) -> list[np.ndarray]:
        """Return bos, then the ids of every part of a document; nothing for bos where the first part has written it.

        Every part is encoded by itself, like a template's own text.
        """
        ids = [self.encode_template(part) for part in parts]
        is_written = bool(ids) and ids[0].size and ids[0][0] == self.bos_id
        return [np.asarray([] if is_written else [self.bos_id], np.int32), *ids]

    def encode_prompt(self, text: str) -> np.ndarray:
        """Return the ids of a text to go on from: those of a document that begins with it, (num_tokens,) int32."""
        return np.concatenate(self.encode_document([text]))

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; special tokens give nothing. Raises UserError for an id that does not exist."""

    def continuation(self, before: Sequence[int] | np.ndarray, ids: Sequence[int] | np.ndarray) -> str:
        """Return what `ids` add to the text of `before`.

        Not their own text: decoders drop the space of a first word, and a character may have begun in `before`.
        """
        old, new = self.decode(before), self.decode([*before, *ids])
        if new.startswith(old):
            return new[len(old) :]
        return new[next((n for n, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(new)) :]

    @abstractmethod
    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the text of every token on its own, for display; bytes of a split character become U+FFFD."""

    @abstractmethod
    def token_id(self, name: str) -> int | None:
        """Return the id of the token of that name, special or not; None if there is none."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the tokenizer does, not of its file. Equal fingerprints give equal ids."""

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        array = np.asarray(ids, np.int64).reshape(-1)
        bad = array[(array < 0) | (array >= self.vocab_size)]
        if bad.size:
            raise UserError(
                f"token id {bad[0]} is not one of the {self.vocab_size} pieces of {self.path}; "
                "use the tokenizer the tokens were made with"
            )
        return array.tolist()
