"""A folder that is not on a local disk: s3://, gs://, http(s)://, through TensorStore's key-value stores.

Small files are copied into the local cache when they are first asked for. Of the large ones, blocks are, if all of them
fit the cache; else what is read is fetched by its exact byte range and not kept. A block is a file of its own, renamed
into place when it is whole. Ranges that are asked for together travel together. Credentials come from where the
provider's own tools look for them (AWS_* variables and profiles, GOOGLE_APPLICATION_CREDENTIALS), never from a config.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from looplm.errors import UserError

SCHEMES = ("s3", "gs", "http", "https")
OPTIONS = ("endpoint", "region", "anonymous")
"""What may follow a `?` in an s3:// address."""
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
BLOCK_BYTES = 4 << 20
READ_TOGETHER = 64
"""Blocks on the way at the same time, so that memory stays small."""
FIRST_RETRIES = {"max_retries": 5, "initial_delay": "1s", "max_delay": "8s"}
"""Until a folder has been read once: a wrong address is said within half a minute. Later, TensorStore's own patience of
minutes holds, so that a run outlives a server that is away for a while."""


def is_remote(path: Path | str) -> bool:
    """Tell an address from a path."""
    return "://" in str(path)


def without_options(url: str) -> str:
    """Return an address as it may be shown: without options and credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def below(url: str, name: str) -> str:
    """Return the address of a folder in the one at `url`, with its options."""
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def store_spec(url: str) -> dict[str, Any]:
    """Return TensorStore's description of the folder at `url`.

    An S3-compatible server is named by `?endpoint=http://host:port&region=name`, or by AWS_ENDPOINT_URL_S3 or
    AWS_ENDPOINT_URL, and AWS_REGION or AWS_DEFAULT_REGION; `?anonymous=true` reads a public bucket without signing.
    Raises UserError for another scheme or option, and for credentials in the address, without repeating them.
    """
    parts, bare = urlsplit(url), without_options(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme not in SCHEMES:
        raise UserError(f"{bare}: unknown scheme {parts.scheme}://; use a folder, or one of {', '.join(SCHEMES)}")
    if "@" in parts.netloc + options.get("endpoint", ""):
        raise UserError(
            f"{bare} is given with credentials, and addresses are written to config.json and logs; take them out and "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_APPLICATION_CREDENTIALS) instead"
        )
    if unknown := [key for key in options if parts.scheme != "s3" or key not in OPTIONS]:
        raise UserError(
            f"{bare}: unknown option {unknown[0]} in the address; s3:// takes {', '.join(OPTIONS)}, others take none"
        )
    folder = parts.path.strip("/") + "/" * bool(parts.path.strip("/"))
    if parts.scheme.startswith("http"):
        return {"driver": "http", "base_url": f"{parts.scheme}://{parts.netloc}", "path": f"/{folder}"}
    if not parts.netloc:
        raise UserError(f"{bare} names no bucket; write {parts.scheme}://BUCKET/FOLDER")
    if parts.scheme == "gs":
        return {"driver": "gcs", "bucket": parts.netloc, "path": folder}
    spec: dict[str, Any] = {"driver": "s3", "bucket": parts.netloc, "path": folder}
    endpoint = options.get("endpoint") or _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    region = options.get("region") or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
    if endpoint:
        spec["endpoint"] = endpoint
    if region or endpoint:  # a server of one's own has a region in name only
        spec["aws_region"] = region or "us-east-1"
    if options.get("anonymous", "false") != "false":
        spec["aws_credentials"] = {"type": "anonymous"}
    elif _environment("AWS_ACCESS_KEY_ID") and _environment("AWS_SECRET_ACCESS_KEY"):
        spec["aws_credentials"] = {"type": "environment"}  # else AWS complains of profiles that are not there
    return spec


class RemoteFolder:
    """The files of a remote folder; pickles, and connects when it is first read."""

    def __init__(self, url: str) -> None:
        """Raises UserError for an address that is none."""
        self.location = without_options(url)
        self._spec = store_spec(url)
        self.is_writable = self._spec["driver"] != "http"
        self._connected: Any = None
        self._reached = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connected": None}

    def read(self, name: str) -> bytes | None:
        """Return a whole file; None if there is none."""
        return self.read_ranges([(name, 0, None)])[0]

    def read_ranges(self, ranges: Sequence[tuple[str, int, int | None]]) -> list[bytes | None]:
        """Return bytes start..stop-1 of files, all at once; None for a file that is not there.

        Raises UserError when the server cannot be reached, refuses, or has fewer bytes.
        """
        with self._refused("read"):
            futures = [self._store().read(name, byte_range=slice(start, stop)) for name, start, stop in ranges]
            results = [future.result() for future in futures]
        return [bytes(result.value) if result.state == "value" else None for result in results]

    def read_end(self, name: str, size: int) -> bytes | None:
        """Return the last bytes of a file, all if it has no more; None if there is none."""
        data = self.read(name)  # not every server knows ranges from the end
        return None if data is None else data[-size:]

    def read_into(self, spans: Sequence[tuple[str, int, np.ndarray]]) -> None:
        """Fill arrays from files, each from a byte on. Raises UserError for a file that is missing or too short."""
        spans = [span for span in spans if span[2].nbytes]
        for begin in range(0, len(spans), READ_TOGETHER):
            some = spans[begin : begin + READ_TOGETHER]
            found = self.read_ranges([(name, start, start + array.nbytes) for name, start, array in some])
            for (name, _, array), data in zip(some, found, strict=True):
                array.view(np.uint8)[:] = np.frombuffer(self._there(name, data), np.uint8)

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once. Raises UserError when the server cannot be reached or refuses."""
        with self._refused("write"):
            self._store().write(name, data).result()

    def remove(self, name: str) -> None:
        """Remove a file; harmless if it is not there."""
        with self._refused("write"):
            self._store().write(name, None).result()

    def names(self) -> set[str]:
        """Return all files, also of folders in it; none if it is not there."""
        with self._refused("list"):
            return {key.decode() for key in self._store().list().result()}

    def close(self) -> None:
        """Let go of the connection; it is made again when it is needed."""
        self._connected = None

    def digest(self, name: str, size: int) -> str:
        """Return the SHA-256 of a file (hex), reading it block by block."""
        digest = hashlib.sha256()
        for start in range(0, size, BLOCK_BYTES):
            digest.update(self.read_ranges([(name, start, min(start + BLOCK_BYTES, size))])[0] or b"")
        return digest.hexdigest()

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise UserError naming a file that is not there or has another size."""
        # The last byte and whatever comes after it.
        ranges = [(name, size - 1, None) for name, size in sizes.items() if size]
        for (name, start, _), tail in zip(ranges, self.read_ranges(ranges), strict=True):
            if tail is None or len(tail) != 1:
                found = "is missing" if tail is None else f"has more than {start + 1} bytes"
                raise UserError(f"{self.location}/{name} {found}; copy the dataset again")

    def copy(self, name: str, size: int, sha256: str, folder: Path) -> Path:
        """Copy a small file into `folder` unless it is there. Raises UserError unless it is what it should be."""
        target = folder / name
        if not (target.is_file() and target.stat().st_size == size):
            data = self.read(name)
            if data is None:
                raise UserError(f"{self.location}/{name} is missing; copy the dataset again")
            if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
                raise UserError(f"{self.location}/{name} was changed or damaged; copy the dataset again")
            write_whole(target, data)
        return target

    @contextmanager
    def _refused(self, verb: str) -> Iterator[None]:
        """Turn what goes wrong inside into a UserError; know from then on that the folder has been reached."""
        try:
            yield
        except Exception as error:  # TensorStore raises whatever fits the status: ValueError, PermissionError, ...
            raise UserError(f"cannot {verb} {self.location}: {_first_line(error)}") from error
        if not self._reached:
            self._reached, self._connected = True, None

    def _there(self, name: str, data: bytes | None) -> bytes:
        if data is None:
            raise UserError(f"{self.location}/{name} has gone; put it back, or make it again")
        return data

    def _store(self) -> Any:
        store = self._connected
        if store is None:
            import tensorstore  # a fifth of a second, and only for data that is not local

            _ask_this_machine_directly()
            # Its own cache would hold all of a block for the few bytes that were asked for.
            first = {} if self._reached else {f"{self._spec['driver']}_request_retries": FIRST_RETRIES}
            store = self._connected = tensorstore.KvStore.open(self._spec | {"context": first}).result()
        return store


class RemoteArray:
    """A file of numbers in a remote folder, sliced like an array."""

    def __init__(self, folder: RemoteFolder, name: str, num_bytes: int, dtype: np.dtype, blocks: Path | None) -> None:
        """`blocks`: the folder for its blocks; None to keep nothing."""
        self.size = num_bytes // dtype.itemsize
        self._folder, self._name, self._num_bytes, self._dtype, self._blocks = folder, name, num_bytes, dtype, blocks
        self._lock = threading.Lock()
        self._coming: dict[int, Future[None]] = {}
        """Blocks that a thread is fetching."""

    def __getitem__(self, key: slice) -> np.ndarray:
        start, stop, _ = key.indices(self.size)
        return self.read_many([(start, stop)])[0]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Return numbers start..stop-1 of every range; what is not in the cache is fetched together."""
        spans = [(start * self._dtype.itemsize, stop * self._dtype.itemsize) for start, stop in ranges]
        if self._blocks is None:
            data = self._fetch([span for span in spans if span[0] < span[1]])
            return [np.frombuffer(next(data) if start < stop else b"", self._dtype) for start, stop in spans]
        self._keep({n for start, stop in spans if start < stop for n in _blocks_of(start, stop)})
        return [self._from_blocks(start, stop).view(self._dtype) for start, stop in spans]

    def _fetch(self, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for data in self._folder.read_ranges([(self._name, start, stop) for start, stop in spans]):
            if data is None:
                raise UserError(f"{self._folder.location}/{self._name} has gone; copy the dataset again")
            yield data

    def _keep(self, blocks: set[int]) -> None:
        """Fetches what is missing; waits for what another thread is fetching."""
        assert self._blocks is not None
        mine: dict[int, Future[None]] = {}
        theirs: list[Future[None]] = []
        with self._lock:
            for n in sorted(blocks):
                if n in self._coming:
                    theirs.append(self._coming[n])
                elif not _block_file(self._blocks, n).exists():
                    mine[n] = self._coming[n] = Future()
        try:
            self._fetch_blocks(list(mine))
        except BaseException as error:
            for future in mine.values():
                future.set_exception(error)
            raise
        else:
            for future in mine.values():
                future.set_result(None)
        finally:
            with self._lock:
                for n in mine:
                    del self._coming[n]
        for future in theirs:
            future.result()

    def _fetch_blocks(self, missing: list[int]) -> None:
        assert self._blocks is not None
        for begin in range(0, len(missing), READ_TOGETHER):
            part = missing[begin : begin + READ_TOGETHER]
            spans = [(n * BLOCK_BYTES, min((n + 1) * BLOCK_BYTES, self._num_bytes)) for n in part]
            for n, data in zip(part, self._fetch(spans), strict=True):
                write_whole(_block_file(self._blocks, n), data)

    def _from_blocks(self, start: int, stop: int) -> np.ndarray:
        if start >= stop:
            return np.zeros(0, np.uint8)
        assert self._blocks is not None
        parts = []
        for n in _blocks_of(start, stop):
            base = n * BLOCK_BYTES
            parts.append(_mapped(_block_file(self._blocks, n))[max(start - base, 0) : stop - base])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def write_whole(target: Path, data: bytes) -> None:
    """Write a file of the cache, whole or not at all. Raises UserError when the cache cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"cannot keep {target.name} in the cache {target.parent}: {error.strerror}; set data.cache_dir to a folder "
            "with room, or data.cache_gb=0 to keep no tokens"
        ) from error


@lru_cache(maxsize=4096)
def _mapped(block: Path) -> np.ndarray:
    return np.memmap(block, np.uint8, mode="r").view(np.ndarray)


def _block_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}"


def _blocks_of(start: int, stop: int) -> range:
    return range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1)


def _ask_this_machine_directly() -> None:
    """A proxy reaches other machines, not a server on this one, as emulators of S3 and GCS are."""
    listed = (_environment("no_proxy", "NO_PROXY") or "").split(",")
    directly = ",".join(dict.fromkeys(filter(None, [*listed, *THIS_MACHINE])))
    os.environ |= {"no_proxy": directly, "NO_PROXY": directly}  # curl looks into the first, others into the second


def _environment(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _first_line(error: Exception) -> str:
    # Without the source places and nested causes that TensorStore adds.
    return str(error).splitlines()[0].split(" [")[0] if str(error) else type(error).__name__
