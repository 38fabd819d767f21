"""Write the files of one dataset folder, in the order of its documents.

Every byte is hashed as it is written and every file is synced before the manifest, which comes last. The caller makes
the folder and renames it into place (`writer`). Deliberately absent: reading, tokenizing, choosing a split.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from looplm.data.folder import sync_folder
from looplm.data.manifest import (
    DOCUMENT_BYTES_FILE,
    DOCUMENT_SOURCES_FILE,
    DOCUMENTS_FILE,
    MANIFEST_FILE,
    SOURCES_FILE,
    TEMPLATE_FILE,
    FileEntry,
    Manifest,
    mask_name,
    shard_name,
)
from looplm.data.source import Source
from looplm.data.tokenizer import Tokenizer

SHARD_BYTES = 1 << 30


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the little-endian type that holds ids below `vocab_size`."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class FolderWriter:
    """Writes documents into an existing empty folder; `finish` makes it a dataset. A context manager."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int | None = None,
        has_loss_mask: bool = False,
        template: str | None = None,
        shard_bytes: int = SHARD_BYTES,
        whole: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """Without a tokenizer, `vocab_size` says what every token is below. `template` wrote the examples, if they are
        supervised. `shard_bytes` are of a file of tokens. `whole` is called with every file when nothing more comes to
        it, the manifest last, and may take it away."""
        self.num_tokens = 0
        self.num_documents = 0
        self.num_bytes = 0
        self._folder = folder
        self._tokenizer = tokenizer
        self._has_loss_mask = has_loss_mask
        self._template = template
        self._whole = whole
        self._vocab_size = tokenizer.vocab_size if tokenizer else vocab_size
        assert self._vocab_size is not None
        self.dtype = token_dtype(self._vocab_size)
        self._shard_tokens = shard_bytes // self.dtype.itemsize
        self._shards: list[_HashedFile] = []
        self._masks: list[_HashedFile] = []
        self._offsets = _HashedFile(folder / DOCUMENTS_FILE)
        self._document_bytes = _HashedFile(folder / DOCUMENT_BYTES_FILE)
        self._document_sources = _HashedFile(folder / DOCUMENT_SOURCES_FILE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._shards, *self._masks, self._offsets, self._document_bytes, self._document_sources):
            file.close()

    def add(
        self,
        tokens: np.ndarray,
        *,
        lengths: np.ndarray | None = None,
        num_bytes: np.ndarray | int = 0,
        sources: np.ndarray | tuple[int, int] = (0, 0),
        mask: np.ndarray | None = None,
    ) -> None:
        """Append documents that lie one after another in `tokens`, (N,) of the writer's dtype; one if no `lengths`.

        Args:
            lengths: tokens of every document, (n,), each at least 1.
            num_bytes: bytes of every document's text, (n,).
            sources: input file and record of every document, (n, 2).
            mask: (N,) uint8, if the dataset has a loss mask.
        """
        assert tokens.dtype == self.dtype
        assert (mask is not None) == self._has_loss_mask
        lengths = np.asarray([tokens.size] if lengths is None else lengths, np.uint64)
        ends = np.cumsum(lengths, dtype=np.uint64)
        assert int(ends[-1]) == tokens.size
        assert lengths.min() > 0
        sizes = np.broadcast_to(np.asarray(num_bytes, "<u8"), lengths.shape)
        self._offsets.write(_bytes((np.uint64(self.num_tokens) + ends - lengths).astype("<u8")))
        self._document_bytes.write(_bytes(np.ascontiguousarray(sizes)))
        pairs = np.broadcast_to(np.asarray(sources, "<u4"), (lengths.size, 2))
        self._document_sources.write(_bytes(np.ascontiguousarray(pairs)))
        self._write_tokens(tokens, mask)
        self.num_tokens += tokens.size
        self.num_documents += lengths.size
        self.num_bytes += int(sizes.sum())

    def finish(self, sources: Iterable[Source] = (), skipped: Mapping[str, int] | None = None) -> Manifest:
        """Write the list of input files, the tokenizer, then the manifest with the counts of what was left out."""
        self._offsets.write(self.num_tokens.to_bytes(8, "little"))
        source_file = _HashedFile(self._folder / SOURCES_FILE)
        for source in sources:
            source_file.write((json.dumps(asdict(source)) + "\n").encode())
        files = [*self._shards, *self._masks, self._offsets, self._document_bytes, self._document_sources, source_file]
        tokenizer = self._tokenizer
        if tokenizer:
            for name, data in tokenizer.files.items():
                files.append(_HashedFile(self._folder / name))
                files[-1].write(data)
        if self._template is not None:
            files.append(_HashedFile(self._folder / TEMPLATE_FILE))
            files[-1].write(self._template.encode())
        manifest = Manifest(
            dtype="uint16" if self.dtype.itemsize == 2 else "uint32",
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            vocab_size=self._vocab_size,
            has_loss_mask=self._has_loss_mask,
            bos_id=tokenizer.bos_id if tokenizer and tokenizer.bos_id >= 0 else None,
            eos_id=tokenizer.eos_id if tokenizer and tokenizer.eos_id >= 0 else None,
            tokenizer_file=tokenizer.file_name if tokenizer else None,
            tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else None,
            files=tuple(file.finish() for file in files),
            skipped=dict(sorted((skipped or {}).items())),
        )
        for file in (*self._shards[-1:], *self._masks[-1:], *files[len(self._shards) + len(self._masks) :]):
            self._whole(file.path)
        manifest_file = _HashedFile(self._folder / MANIFEST_FILE)
        manifest_file.write(manifest.dump())
        manifest_file.finish()
        sync_folder(self._folder)
        self._whole(manifest_file.path)
        return manifest

    def _write_tokens(self, tokens: np.ndarray, mask: np.ndarray | None) -> None:
        # A document may cross from one shard into the next: readers see one flat stream.
        start = 0
        while start < tokens.size:
            filled = (self.num_tokens + start) % self._shard_tokens
            if filled == 0:
                self._next_shard()
            stop = min(tokens.size, start + self._shard_tokens - filled)
            self._shards[-1].write(_bytes(tokens[start:stop]))
            if mask is not None:
                self._masks[-1].write(_bytes(mask[start:stop]))
            start = stop

    def _next_shard(self) -> None:
        for files, name in ((self._shards, shard_name), (self._masks, mask_name)):
            if files is self._masks and not self._has_loss_mask:
                continue
            if files:
                files[-1].close()
                self._whole(files[-1].path)
            files.append(_HashedFile(self._folder / name(len(files))))


class _HashedFile:
    """A new file with its size and digest known at the end."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self.path = path
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
        return FileEntry(name=self.path.name, size=self.size, sha256=self._digest.hexdigest())


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).data.cast("B")
