"""Where the work of a build is kept: a folder on a disk or at an address, of files that are whole or not there.

`DiskFolder` is the one; `remote.RemoteFolder` has the same methods for the other. Names are relative, with slashes.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from looplm.data.folder import sync_folder
from looplm.data.remote import RemoteFolder, is_remote
from looplm.errors import UserError

_MAX_OPEN = 256


class Place(Protocol):
    """A folder that may be read and written by several processes, each its own files."""

    location: str
    """For people."""

    def read(self, name: str) -> bytes | None:
        """Return a whole file; None if there is none."""

    def read_end(self, name: str, size: int) -> bytes | None:
        """Return the last bytes of a file, all if it has no more; None if there is none."""

    def read_into(self, spans: Sequence[tuple[str, int, np.ndarray]]) -> None:
        """Fill arrays from files, each from a byte on. Raises UserError for a file that is missing or too short."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once, and durably."""

    def names(self) -> set[str]:
        """Return all files, also of folders in it; none if it is not there."""

    def close(self) -> None:
        """Let go of open files; they are opened again when they are read."""


def place_at(where: Path | str) -> "Place":
    """Return the folder at a path or an address. Raises UserError for an address that is none."""
    return RemoteFolder(str(where)) if is_remote(where) else DiskFolder(Path(where))


def check_writable(place: Place) -> None:
    """Raise UserError for an address that can only be read."""
    if isinstance(place, RemoteFolder) and not place.is_writable:
        raise UserError(f"--out {place.location} can only be read; give a folder, s3:// or gs://")


class DiskFolder:
    """A folder on a disk; made when it is first written to. Pickles."""

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path)
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"cannot read {self.location}/{name}: {error.strerror}; mend its permissions") from None

    def read_end(self, name: str, size: int) -> bytes | None:
        try:
            with (self.path / name).open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - size, 0))
                return file.read()
        except FileNotFoundError:
            return None

    def read_into(self, spans: Sequence[tuple[str, int, np.ndarray]]) -> None:
        for name, start, array in spans:
            file, view, offset = self._file(name), array.view(np.uint8).data, start
            while view:
                count = os.preadv(file, [view], offset)
                if count == 0:
                    raise UserError(f"{self.location}/{name} is shorter than when it was written; build it again")
                view, offset = view[count:], offset + count

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)

    def names(self) -> set[str]:
        walked = os.walk(self.path, followlinks=True)  # parts may be gathered by links
        return {Path(parent, name).relative_to(self.path).as_posix() for parent, _, names in walked for name in names}

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _file(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        try:
            file = self._open[name] = os.open(self.path / name, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read {self.location}/{name}: {error.strerror}; build it again") from None
        return file
