"""Folders that are written to: made, and on the disk."""

import os
from pathlib import Path

from looplm.errors import UserError


def make_folder(folder: Path, out: Path) -> None:
    """Make a folder and those above it. Raises UserError naming `out`, which the user gave, when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; give another folder") from None


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
