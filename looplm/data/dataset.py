"""Open, check and read a token dataset made by `writer`.

Opening reads the manifest and compares it with the disk; digests are checked only by `verify`. Files are memory-mapped
when first read, and not pickled, so a dataset can be sent to another process. A folder at an address (s3://bucket/name)
is read through `remote`. Deliberately absent: windows, order, batches.
"""

import hashlib
import json
import os
from collections.abc import Collection
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from looplm.data.manifest import (
    DOCUMENT_BYTES_FILE,
    DOCUMENT_SOURCES_FILE,
    DOCUMENTS_FILE,
    MANIFEST_FILE,
    REBUILD,
    SOURCES_FILE,
    TEMPLATE_FILE,
    FileEntry,
    Manifest,
)
from looplm.data.manifest_file import read_manifest, read_remote_manifest
from looplm.data.remote import RemoteArray, RemoteFolder, is_remote
from looplm.data.stretches import Files, read_stretches
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

_CHECK_STRIDE = 1 << 20
_LARGE = ("tokens-", "mask-")
"""Files that are read piece by piece."""
DEFAULT_CACHE_BYTES = 100e9


class TokenDataset:
    """A dataset folder: one stream of tokens, cut into documents. Made by `TokenDataset.open`."""

    def __init__(
        self, path: Path, manifest: Manifest, fingerprint: str, remote: RemoteFolder | None, cache_bytes: float
    ) -> None:
        self.path = path
        """The folder, or that of the copies of its files."""
        self.location = remote.location if remote else str(path)
        """Where it is, for people."""
        self.manifest = manifest
        self.fingerprint = fingerprint
        """SHA-256 (hex) of the manifest, which holds the digest of every file: equal means the same dataset."""
        self._remote = remote
        large = sum(entry.size for prefix in _LARGE for entry in self.manifest.entries(prefix))
        self._blocks = path / "blocks" if remote and large <= cache_bytes else None

    @classmethod
    def open(
        cls, path: Path | str, *, cache: Path | None = None, cache_bytes: float = DEFAULT_CACHE_BYTES
    ) -> "TokenDataset":
        """Open a folder on a disk or at an address.

        Args:
            cache: where files of addresses are copied to; by default a folder in the user's cache.
            cache_bytes: tokens of an address are kept there if all of them fit into so many bytes.

        Raises UserError unless it is a complete dataset whose files have the sizes they should.
        """
        remote = RemoteFolder(str(path)) if is_remote(path) else None
        data = read_remote_manifest(remote) if remote else read_manifest(Path(path))
        fingerprint = hashlib.sha256(data).hexdigest()
        folder = (cache or default_cache()) / "datasets" / fingerprint[:16] if remote else Path(path)
        manifest = Manifest.parse(data, Path(remote.location if remote else path) / MANIFEST_FILE)
        dataset = cls(folder, manifest, fingerprint, remote, cache_bytes)
        dataset._check_sizes()
        dataset._check_offsets()
        return dataset

    def __repr__(self) -> str:
        return f"TokenDataset({self.location!r}, num_tokens={self.num_tokens}, num_documents={self.num_documents})"

    def __getstate__(self) -> dict[str, Any]:
        maps = ("_shards", "_masks", "document_offsets", "document_bytes", "document_sources")
        return {key: value for key, value in self.__dict__.items() if key not in maps}

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    @property
    def num_documents(self) -> int:
        return self.manifest.num_documents

    @property
    def num_bytes(self) -> int:
        """Bytes of all texts in UTF-8."""
        return self.manifest.num_bytes

    @property
    def vocab_size(self) -> int:
        """Every token is below this."""
        return self.manifest.vocab_size

    @property
    def dtype(self) -> np.dtype:
        """Type of a token on disk."""
        return np.dtype(self.manifest.dtype).newbyteorder("<")

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """First token of every document, then num_tokens: (num_documents + 1,) uint64, strictly increasing."""
        return self._map(DOCUMENTS_FILE, np.dtype("<u8"))

    @cached_property
    def document_bytes(self) -> np.ndarray:
        """Bytes of every document's text in UTF-8: (num_documents,) uint64."""
        return self._map(DOCUMENT_BYTES_FILE, np.dtype("<u8"))

    @cached_property
    def document_sources(self) -> np.ndarray:
        """Line of sources.jsonl and record of every document, both from 0: (num_documents, 2) uint32."""
        return self._map(DOCUMENT_SOURCES_FILE, np.dtype("<u4")).reshape(-1, 2)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer the dataset was made with. Raises UserError if there is none or the file was exchanged."""
        if self.manifest.tokenizer_file is None:
            raise UserError(
                f"dataset {self.location} was taken over without a tokenizer; "
                "build it again with --tokenizer to read its tokens as text"
            )
        for entry in self.manifest.entries("tokenizer"):
            self._file(entry.name)  # those of Hugging Face are two, side by side
        tokenizer = Tokenizer.load(self._file(self.manifest.tokenizer_file))
        if tokenizer.fingerprint != self.manifest.tokenizer_fingerprint:
            raise UserError(f"{tokenizer.path} is not the tokenizer dataset {self.location} was made with; {REBUILD}")
        return tokenizer

    @property
    def template(self) -> str | None:
        """What wrote its supervised examples; see `data.formats.template`. None for plain text."""
        return self._file(TEMPLATE_FILE).read_bytes().decode() if self.manifest.entries(TEMPLATE_FILE) else None

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return tokens start..stop-1 of the stream, in the type on disk; a view where one file holds them all.

        Raises IndexError unless 0 <= start <= stop <= num_tokens.
        """
        return self._slice(self._shards, start, stop)

    def loss_mask(self, start: int, stop: int) -> np.ndarray | None:
        """Return uint8 beside `tokens(start, stop)`: 1 where a token is to be learnt; None where all of them are.

        The label that is scored is the one that predicts the token. Raises IndexError like `tokens`.
        """
        return self._slice(self._masks, start, stop) if self.manifest.has_loss_mask else None

    def read_many(self, starts_N: np.ndarray, stops_N: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Return `tokens` and `loss_mask` of many stretches; at an address, all of them travel together."""
        ranges = list(zip(starts_N.tolist(), stops_N.tolist(), strict=True))
        tokens = read_stretches(self._shards, ranges)
        masks = read_stretches(self._masks, ranges) if self.manifest.has_loss_mask else [None] * len(ranges)
        return list(zip(tokens, masks, strict=True))

    def _slice(self, files: Files, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} of {self!r}")
        return read_stretches(files, [(start, stop)])[0]

    def source_names(self, lines: Collection[int]) -> dict[int, str]:
        """Return the names of input files by their line in sources.jsonl."""
        with self._file(SOURCES_FILE).open() as file:
            listed = enumerate(islice(file, max(lines, default=-1) + 1))
            return {number: json.loads(line)["name"] for number, line in listed if number in lines}

    def verify(self) -> None:
        """Recompute the digest of every file. Raises UserError naming the first file that was changed."""
        for entry in self.manifest.files:
            if self._remote is not None:
                digest = self._remote.digest(entry.name, entry.size)
            else:
                with (self.path / entry.name).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry.sha256:
                raise UserError(f"{self.location}/{entry.name} was changed or damaged (its SHA-256 differs); {REBUILD}")

    @property
    def is_remote(self) -> bool:
        """Whether it is read from an address."""
        return self._remote is not None

    @property
    def has_tokenizer(self) -> bool:
        """False for token files that were taken over without one."""
        return self.manifest.tokenizer_file is not None

    def check_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Raise UserError unless `tokenizer` gives the ids this dataset holds; None: unless it has no tokenizer too."""
        if tokenizer is None or not self.has_tokenizer:
            if tokenizer is not None or self.has_tokenizer:
                which = "has a tokenizer and the other data none" if self.has_tokenizer else "has no tokenizer"
                raise UserError(f"dataset {self.location} {which}; build all with --tokenizer, or all without")
        elif tokenizer.fingerprint != self.manifest.tokenizer_fingerprint:
            raise UserError(
                f"dataset {self.location} was made with another tokenizer than {tokenizer.path}; "
                "use the one in its folder, or build the dataset again with yours"
            )

    @property
    def name(self) -> str:
        """The last part of where it is."""
        return self.location.rpartition("/")[2]

    def check_vocab(self, vocab_size: int) -> None:
        """Raise UserError unless a model with `vocab_size` embeddings knows every token."""
        if vocab_size < self.vocab_size:
            raise UserError(
                f"model.vocab_size={vocab_size} is below the {self.vocab_size} pieces of dataset {self.location}; "
                f"set it to {self.vocab_size} or more"
            )

    @cached_property
    def _shards(self) -> Files:
        return [self._large(entry, self.dtype) for entry in self.manifest.entries("tokens-")]

    @cached_property
    def _masks(self) -> Files:
        return [self._large(entry, np.dtype("u1")) for entry in self.manifest.entries("mask-")]

    def _large(self, entry: FileEntry, dtype: np.dtype) -> np.ndarray | RemoteArray:
        if self._remote is None:
            return self._map(entry.name, dtype)
        blocks = self._blocks / entry.name if self._blocks else None
        return RemoteArray(self._remote, entry.name, entry.size, dtype, blocks)

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        # As a plain array: slicing np.memmap objects costs several times more.
        return np.memmap(self._file(name), dtype, mode="r").view(np.ndarray)

    def _file(self, name: str) -> Path:
        """The file on a disk; copied there before if it is a remote one."""
        if self._remote is None:
            return self.path / name
        (entry,) = (entry for entry in self.manifest.files if entry.name == name)
        return self._remote.copy(name, entry.size, entry.sha256, self.path)

    def _check_sizes(self) -> None:
        if self.num_tokens == 0 or self.num_documents == 0:
            raise UserError(f"dataset {self.location} holds no token; {REBUILD} from files with text")
        if self._remote is not None:
            self._remote.check_sizes({entry.name: entry.size for entry in self.manifest.files})
        else:
            for entry in self.manifest.files:
                file = self.path / entry.name
                size = file.stat().st_size if file.is_file() else None
                if size != entry.size:
                    found = "is missing" if size is None else f"has {size} bytes instead of {entry.size}"
                    raise UserError(f"{file} {found}; copy the dataset again, or {REBUILD}")
        if not self.manifest.has_right_sizes:
            raise UserError(f"{self.path / MANIFEST_FILE} contradicts itself about the sizes of its files; {REBUILD}")

    def _check_offsets(self) -> None:
        offsets = self.document_offsets
        right = int(offsets[0]) == 0 and int(offsets[-1]) == self.num_tokens
        for start in range(0, offsets.size - 1, _CHECK_STRIDE):
            part = offsets[start : start + _CHECK_STRIDE + 1]
            right = right and bool(np.all(part[1:] > part[:-1]))
        if not right:
            raise UserError(f"{self.path / DOCUMENTS_FILE} does not divide the tokens into documents; {REBUILD}")


def default_cache() -> Path:
    """The folder for copies of remote data: $XDG_CACHE_HOME/looplm, or ~/.cache/looplm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "looplm"
