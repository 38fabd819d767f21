"""Files and folders that are written to: whether they can be, made, and on the disk."""

import os
import shutil
from pathlib import Path

from looplm.errors import UserError


def make_folder(folder: Path, out: Path | str) -> None:
    """Make a folder and those above it. Raises UserError naming `out`, which the user gave, when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; give another folder") from None


def obstacle(path: Path) -> str:
    """Say why a file cannot be written, with the folders above it, as far as that shows beforehand; empty when it can.

    For what takes long to compute: a result that cannot be kept should be known before the work.
    """
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return ""  # a pipe, or standard output
    place = Path(os.path.realpath(path))
    nearest = next(folder for folder in place.parents if os.path.lexists(folder))
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is not writable"
    return "" if shutil.disk_usage(nearest).free else f"{nearest} has no room left"


def write_result(path: Path, data: bytes) -> None:
    """Write a file, and the folders above it, at once: what is there is whole. Raises OSError."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, place)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
