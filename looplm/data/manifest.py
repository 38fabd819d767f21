"""What a dataset folder says about itself: the names of its files and the contents of `manifest.json`.

The manifest is written last, so a folder without one is not a dataset. It holds its own digest, so that an edit is
noticed, and no time, no path and nothing else that differs between two builds of the same text.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from looplm.errors import UserError

MANIFEST_FILE = "manifest.json"
DOCUMENTS_FILE = "documents.bin"
"""Little-endian uint64: the token offset of every document's start, then the number of tokens."""
DOCUMENT_BYTES_FILE = "document_bytes.bin"
"""Little-endian uint64: bytes of every document's text in UTF-8; 0 where the text is not known."""
DOCUMENT_SOURCES_FILE = "document_sources.bin"
"""Little-endian uint32 pairs: where every document is from, as a line of `sources.jsonl` and a record, from 0."""
SOURCES_FILE = "sources.jsonl"
"""A line for every input file: name, size and sha256."""
TEMPLATE_FILE = "template.txt"
"""What wrote the supervised examples, as it was given: a format or a Jinja template, for chats or for pairs. The same
file is in the folder of a run."""

FORMAT = 2
REBUILD = "build the dataset again with `looplm data build`"


def shard_name(number: int) -> str:
    """Return the name of a file of tokens."""
    return f"tokens-{number:05d}.bin"


def mask_name(number: int) -> str:
    """Return the name of the file with the loss mask of the tokens of `shard_name(number)`."""
    return f"mask-{number:05d}.bin"


class FileEntry(BaseModel):
    """A file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """In the folder itself: a manifest may come from anywhere, and its files are copied."""
    size: NonNegativeInt
    """Bytes."""
    sha256: str


class Manifest(BaseModel):
    """The contents of `manifest.json`, but for its own digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Literal[2] = 2
    dtype: Literal["uint16", "uint32"]
    """Type of a token on disk, little-endian."""
    num_tokens: NonNegativeInt
    """Tokens, bos and eos of every document included."""
    num_documents: NonNegativeInt
    num_bytes: NonNegativeInt
    """Bytes of all texts in UTF-8; 0 where the texts are not known."""
    vocab_size: PositiveInt
    """Every token is below this."""
    has_loss_mask: bool = False
    """Whether every shard of tokens has a file of uint8 beside it: 1 for a token that is to be learnt, else 0."""
    bos_id: NonNegativeInt | None
    eos_id: NonNegativeInt | None
    """None, like all of the tokenizer, for token files that were taken over without one."""
    tokenizer_file: Literal["tokenizer.model", "tokenizer.json"] | None
    """SentencePiece or Hugging Face."""
    tokenizer_fingerprint: str | None
    files: tuple[FileEntry, ...]
    """Every file but the manifest and the build report; files of tokens in order."""
    skipped: dict[str, int]
    """Inputs that gave no document, by reason; of the whole build."""

    def entries(self, prefix: str) -> list[FileEntry]:
        """Return the files whose names begin so, in order."""
        return [entry for entry in self.files if entry.name.startswith(prefix)]

    @property
    def has_right_sizes(self) -> bool:
        """Whether the files are those of so many tokens and documents, and as large."""
        itemsize = np.dtype(self.dtype).itemsize
        shards = self.entries("tokens-")
        sizes = {entry.name: entry.size for entry in self.files}
        expected = {DOCUMENTS_FILE: 8 * (self.num_documents + 1)}
        expected |= dict.fromkeys((DOCUMENT_BYTES_FILE, DOCUMENT_SOURCES_FILE), 8 * self.num_documents)
        masks = [(mask_name(number), entry.size // itemsize) for number, entry in enumerate(shards)]
        return (
            sum(entry.size for entry in shards) == self.num_tokens * itemsize
            and [entry.name for entry in shards] == [shard_name(number) for number in range(len(shards))]
            and all(entry.size == shards[0].size for entry in shards[:-1])
            and all(sizes.get(name) == size for name, size in expected.items())
            and [(entry.name, entry.size) for entry in self.entries("mask-")] == masks * self.has_loss_mask
        )

    def dump(self) -> bytes:
        """Return the bytes of `manifest.json`."""
        fields = self.model_dump(mode="json")
        return (json.dumps(fields | {"sha256": _digest(fields)}, indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, path: Path) -> "Manifest":
        """Read the bytes of `manifest.json`; raises UserError naming `path` and what is wrong."""
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise UserError(f"{path} is not a manifest of format {FORMAT}: {error}; {REBUILD}") from None
        if (version := fields.get("format_version")) != FORMAT:
            raise UserError(f"{path} has format_version={version!r}, and this looplm reads {FORMAT}; {REBUILD}")
        digest = fields.pop("sha256", None)
        try:
            manifest = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"{path} is not a manifest of format {FORMAT}: {field}: {first['msg']}; {REBUILD}"
            ) from None
        if digest != _digest(fields):
            raise UserError(f"{path} was edited or damaged (its digest differs); restore it, or {REBUILD}")
        return manifest


def _digest(fields: dict[str, Any]) -> str:
    """SHA-256 (hex) of what the manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
