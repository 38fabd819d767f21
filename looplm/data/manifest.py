"""What a dataset folder says about itself: the names of its files and the contents of `manifest.json`.

The manifest is written last, so a folder without one is not a dataset. It holds no time, no path and nothing else that
differs between two builds of the same text. The sources are listed in `sources.jsonl` and not here, so that opening a
dataset of many millions of documents stays fast.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from looplm.errors import UserError

MANIFEST_FILE = "manifest.json"
DOCUMENTS_FILE = "documents.bin"
"""Little-endian uint64: the token offset of every document's start, then the number of tokens."""
DOCUMENT_BYTES_FILE = "document_bytes.bin"
"""Little-endian uint64: bytes of every document's text in UTF-8."""
SOURCES_FILE = "sources.jsonl"
"""A line for every document: name, num_bytes, sha256 of the text."""


def shard_name(number: int) -> str:
    """Return the name of a file of tokens."""
    return f"tokens-{number:05d}.bin"


class FileEntry(BaseModel):
    """A file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: NonNegativeInt
    """Bytes."""
    sha256: str


class Manifest(BaseModel):
    """The contents of `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Literal[1] = 1
    dtype: Literal["uint16", "uint32"]
    """Type of a token on disk, little-endian."""
    num_tokens: NonNegativeInt
    """Tokens, bos and eos of every document included."""
    num_documents: NonNegativeInt
    num_bytes: NonNegativeInt
    """Bytes of all texts in UTF-8."""
    vocab_size: PositiveInt
    """Every token is below this."""
    bos_id: NonNegativeInt
    eos_id: NonNegativeInt
    tokenizer_fingerprint: str
    files: tuple[FileEntry, ...]
    """Every file but the manifest; files of tokens in order."""
    skipped: dict[str, int]
    """Input files that gave no document, by reason; of the whole build."""

    def dump(self) -> bytes:
        """Return the bytes of `manifest.json`."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, path: Path) -> "Manifest":
        """Read the bytes of `manifest.json`; raises UserError naming `path` and the first field that is wrong."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            value = f"={first['input']!r}" if first["loc"] == ("format_version",) else ""
            raise UserError(
                f"{path} is not a manifest of format 1: {field}{value}: {first['msg']}; "
                "build the dataset again with `looplm data build`"
            ) from None
