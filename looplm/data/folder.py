"""Folders that a user named to be written to."""

from pathlib import Path

from looplm.errors import UserError


def make_folder(folder: Path, out: Path) -> None:
    """Make a folder and those above it. Raises UserError naming `out`, which the user gave, when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; give another folder") from None
