"""The bytes of a file in chunks, decompressed, with the digest of the file as it is on disk.

How it is compressed its first bytes say. A compressed file may have several members or frames; an end in the middle of
one is an error and not an end.
"""

import bz2
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from looplm.data.source import SourceFile
from looplm.errors import UserError

CHUNK_BYTES = 1 << 20
_MAGICS = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"\xfd7zXZ\0": "xz", b"BZh": "bz2"}
_SKIPPABLE = tuple(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))
"""Frames of zstd that hold other things than data; some writers begin with one."""
# What a chunk becomes is not bounded by the decompressors.
_COMPRESSED_CHUNK_BYTES = 1 << 16


class Damaged(Exception):
    """A file that cannot be read to its end; the message says why."""


class FileStream:
    """A file that is read once, from its start."""

    HEAD_BYTES: ClassVar = 1 << 16

    def __init__(self, source: SourceFile) -> None:
        """Raises UserError when the file cannot be opened."""
        self._source = source
        self._digest = hashlib.sha256()
        self.damage: Damaged | None = None
        """Why the iteration ended before the file did. Not raised there: what was read is of use."""
        self.num_read = 0
        """Bytes on disk that were read so far."""
        self._file = open_file(source)
        head = self._file.peek(8)[:8]
        self.compression = next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)
        if head.startswith(_SKIPPABLE):
            self.compression = "zst"
        self._ahead: list[bytes] = []
        self._chunks = self._decompressed()

    def peek(self) -> bytes:
        """Return the first decompressed bytes, which are still to come; HEAD_BYTES if there are as many."""
        while sum(map(len, self._ahead)) < self.HEAD_BYTES and (chunk := next(self._chunks, b"")):
            self._ahead.append(chunk)
        return b"".join(self._ahead)[: self.HEAD_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        """Yield the decompressed bytes. Raises UserError when the file was changed meanwhile."""
        while self._ahead:
            yield self._ahead.pop(0)
        yield from self._chunks

    def _decompressed(self) -> Iterator[bytes]:
        if self._source.compression not in (None, self.compression) and self._source.size:
            kind = self._source.compression
            self.damage = Damaged(f"its name says {kind}, and it is none; rename it if it is not compressed")
        elif self.compression is None:
            yield from self._raw(CHUNK_BYTES)
        else:
            try:
                yield from _decompress(
                    self._raw(_COMPRESSED_CHUNK_BYTES), _decompressor(self.compression, self._source)
                )
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


def open_file(source: SourceFile) -> io.BufferedReader:
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
            except Exception as error:  # each library has its own
                if "ictionary" in str(error):
                    raise Damaged("it needs its dictionary; decompress it with `zstd -d -D DICTIONARY`") from None
                raise Damaged(f"it is corrupt ({error})") from None
            if data:
                yield data
            rest = member.unused_data if member.eof else b""
            if member.eof:
                member, started = new(), False
    if started:
        raise Damaged("it is truncated")


def _decompressor(compression: str, source: SourceFile) -> Callable[[], Any]:
    others: dict[str, Callable[[], Any]] = {
        "gz": lambda: zlib.decompressobj(wbits=31),
        "xz": lzma.LZMADecompressor,
        "bz2": bz2.BZ2Decompressor,
    }
    if compression in others:
        return others[compression]
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{source.path} needs the `zstandard` library; run `pip install looplm[data]`") from None
    # As wide as `zstd --long=31` makes it.
    return lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
