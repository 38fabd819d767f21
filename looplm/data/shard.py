"""Write the files of one dataset folder, document by document.

Every byte is hashed as it is written and every file is synced before the manifest, which comes last. The caller makes
the folder and renames it into place (`writer`). Deliberately absent: reading, tokenizing, choosing a split.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from looplm.data.encode import EncodedDocument
from looplm.data.manifest import (
    DOCUMENT_BYTES_FILE,
    DOCUMENTS_FILE,
    MANIFEST_FILE,
    SOURCES_FILE,
    FileEntry,
    Manifest,
    shard_name,
)
from looplm.data.tokenizer import TOKENIZER_FILE, Tokenizer

SHARD_BYTES = 1 << 30


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the little-endian type that holds ids below `vocab_size`."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class FolderWriter:
    """Writes documents into an existing empty folder; `finish` makes it a dataset. A context manager."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.num_tokens = 0
        self.num_documents = 0
        self.num_bytes = 0
        self._folder = folder
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._shard_bytes = shard_bytes // self._dtype.itemsize * self._dtype.itemsize
        self._shards: list[_HashedFile] = []
        self._offsets = _HashedFile(folder / DOCUMENTS_FILE)
        self._document_bytes = _HashedFile(folder / DOCUMENT_BYTES_FILE)
        self._sources = _HashedFile(folder / SOURCES_FILE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._shards, self._offsets, self._document_bytes, self._sources):
            file.close()

    def add(self, document: EncodedDocument) -> None:
        """Append a document; its tokens have the type of `token_dtype`."""
        assert document.tokens.dtype == self._dtype
        self._offsets.write(_uint64(self.num_tokens))
        self._document_bytes.write(_uint64(document.num_bytes))
        source = {"name": document.name, "num_bytes": document.num_bytes, "sha256": document.sha256}
        self._sources.write((json.dumps(source) + "\n").encode())
        self._write_tokens(document.tokens.data.cast("B"))
        self.num_tokens += document.tokens.size
        self.num_documents += 1
        self.num_bytes += document.num_bytes

    def finish(self, model: bytes, skipped: Mapping[str, int]) -> Manifest:
        """Write the rest: the tokenizer's model file, then the manifest with the counts of skipped files."""
        self._offsets.write(_uint64(self.num_tokens))
        tokenizer_file = _HashedFile(self._folder / TOKENIZER_FILE)
        tokenizer_file.write(model)
        files = (*self._shards, self._offsets, self._document_bytes, self._sources, tokenizer_file)
        manifest = Manifest(
            dtype="uint16" if self._dtype.itemsize == 2 else "uint32",
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            vocab_size=self._tokenizer.vocab_size,
            bos_id=self._tokenizer.bos_id,
            eos_id=self._tokenizer.eos_id,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            files=tuple(file.finish() for file in files),
            skipped=dict(sorted(skipped.items())),
        )
        manifest_file = _HashedFile(self._folder / MANIFEST_FILE)
        manifest_file.write(manifest.dump())
        manifest_file.finish()
        sync_folder(self._folder)
        return manifest

    def _write_tokens(self, data: memoryview) -> None:
        # A document may cross from one shard into the next: readers see one flat stream.
        while data.nbytes:
            if not self._shards or self._shards[-1].size == self._shard_bytes:
                if self._shards:
                    self._shards[-1].close()
                self._shards.append(_HashedFile(self._folder / shard_name(len(self._shards))))
            room = self._shard_bytes - self._shards[-1].size
            self._shards[-1].write(data[:room])
            data = data[room:]


class _HashedFile:
    """A new file with its size and digest known at the end."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Write to the disk and close; harmless when closed already."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def finish(self) -> FileEntry:
        self.close()
        return FileEntry(name=self._path.name, size=self.size, sha256=self._digest.hexdigest())


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _uint64(value: int) -> bytes:
    return value.to_bytes(8, "little")
