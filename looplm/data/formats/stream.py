"""The bytes of a file in chunks, decompressed, with the digest of the file as it is on disk.

A compressed file may have several members or frames. An end in the middle of one is an error and not an end.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from looplm.data.source import SourceFile
from looplm.errors import UserError

CHUNK_BYTES = 1 << 20
# What a chunk becomes is not bounded by the decompressors.
_COMPRESSED_CHUNK_BYTES = 1 << 16


class Damaged(Exception):
    """A file that cannot be read to its end; the message says why."""


class FileStream:
    """A file that is read once, from its start."""

    def __init__(self, source: SourceFile) -> None:
        """Raises UserError when the file cannot be opened."""
        self._source = source
        self._digest = hashlib.sha256()
        self.damage: Damaged | None = None
        """Why the iteration ended before the file did. Not raised there: what was read is of use."""
        self.num_read = 0
        """Bytes on disk that were read so far."""
        self._file: BinaryIO = open_file(source)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the decompressed bytes. Raises UserError when the file was changed meanwhile."""
        if self._source.compression is None:
            yield from self._raw(CHUNK_BYTES)
        else:
            try:
                yield from _decompress(self._raw(_COMPRESSED_CHUNK_BYTES), _decompressor(self._source))
            except Damaged as error:
                self.damage = error
        self.finish()
        check_unchanged(self._source, self.num_read)

    def finish(self) -> str:
        """Return the digest (SHA-256, hex) of the whole file, reading what is left of it."""
        if not self._file.closed:
            for _ in self._raw(CHUNK_BYTES):
                pass
            self._file.close()
        return self._digest.hexdigest()

    def _raw(self, size: int) -> Iterator[bytes]:
        while chunk := self._file.read(size):
            self._digest.update(chunk)
            self.num_read += len(chunk)
            yield chunk


def open_file(source: SourceFile) -> BinaryIO:
    """Open a file. Raises UserError when that fails."""
    try:
        return source.path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {source.path}: {error.strerror}; mend its permissions or leave it out") from None


def check_unchanged(source: SourceFile, num_read: int) -> None:
    """Raise UserError when a file has not the size it was listed with."""
    if num_read != source.size:
        raise UserError(
            f"{source.path} was changed while it was read: {num_read} bytes instead of {source.size}; "
            "build again when nothing writes to it"
        )


def _decompress(chunks: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    member, started = new(), False
    for chunk in chunks:
        rest = chunk
        while rest:
            if not started:
                rest = rest.lstrip(b"\0")  # padding between members, which gzip allows
                started = bool(rest)
                continue
            try:
                data = member.decompress(rest)
            except Exception as error:  # zlib.error and zstandard.ZstdError
                raise Damaged(f"it is corrupt ({error})") from None
            if data:
                yield data
            rest = member.unused_data if member.eof else b""
            if member.eof:
                member, started = new(), False
    if started:
        raise Damaged("it is truncated")


def _decompressor(source: SourceFile) -> Callable[[], Any]:
    if source.compression == "gz":
        return lambda: zlib.decompressobj(wbits=31)
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{source.path} needs the `zstandard` library; run `pip install looplm[data]`") from None
    return lambda: zstandard.ZstdDecompressor().decompressobj()
