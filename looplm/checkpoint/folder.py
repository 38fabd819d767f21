"""Names in WORKDIR/checkpoints. A folder gets the name of its step when it is sealed, and loses it before it is
deleted, so what has such a name was whole once.

    300                    a checkpoint
    400.writing            the remains of a save that was cut off (also 400.writing.orbax-checkpoint-tmp)
    100.deleting           those of a removal
    200.damaged            passed over by a resume, kept to be looked at

Each of them may be a link, made by whoever moved it to another disk. A link is read like a folder; what removes or
renames a folder does so to the link, and what it leads to is never touched.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from looplm.checkpoint.seal import SEAL_FILE, Damaged
from looplm.errors import UserError

STEP = re.compile(r"0|[1-9][0-9]{0,17}")
UNFINISHED = re.compile(r"[0-9]+\.writing(\.[A-Za-z0-9._-]+)?")
REMAINS = re.compile(rf"{UNFINISHED.pattern}|[0-9]+\.deleting(\.[A-Za-z0-9._-]+)?")
DAMAGED = re.compile(r"[0-9]+\.damaged")
MAX_LINKS = 40
"""That are followed one after the other."""


def checkpoint_of(path: Path) -> tuple[Path, int | None]:
    """(run directory, which of its checkpoints): of RUN the newest (None), of RUN/checkpoints/12, or of a link to that,
    this one."""
    place = path.absolute()
    for _ in range(MAX_LINKS):
        is_run = (place / "checkpoints").is_dir()  # wherever it lies
        if place.parent.name == "checkpoints" and STEP.fullmatch(place.name) and not is_run:
            return place.parent.parent, int(place.name)
        if not place.is_symlink():
            break
        place = Path(os.path.normpath(place.parent / os.readlink(place)))
    return path, None


def place_of(folder: Path, step: int) -> Path:
    """The folder of a checkpoint; of a link, what it leads to. Raises Damaged for a link to nothing."""
    path = folder / str(step)
    if not path.is_symlink():
        return path
    if not os.path.isdir(path):
        raise Damaged(f"it is a link to {os.readlink(path)}, which is not there")
    return Path(os.path.realpath(path))


def linked_away(folder: Path) -> Path | None:
    """The first link in the place of a checkpoint, or of the folder itself, that leads to no checkpoint or folder:
    as a rule to a disk that is not mounted."""
    if folder.is_symlink() and not os.path.isdir(folder):
        return folder
    paths = (folder / str(step) for step in steps(folder))
    return next((path for path in paths if path.is_symlink() and not os.path.isfile(path / SEAL_FILE)), None)


def steps(folder: Path) -> list[int]:
    """Ascending, links among them, wherever they lead; empty when there is no such folder."""
    return sorted(map(int, _named(folder, STEP)))


def remains(folder: Path) -> list[str]:
    """Names of what dead saves and removals have left."""
    return _named(folder, REMAINS)


def unfinished(folder: Path) -> list[str]:
    """Those of saves alone: a removal may go on in another process."""
    return _named(folder, UNFINISHED)


def damaged(folder: Path) -> list[str]:
    return _named(folder, DAMAGED)


def writing(folder: Path, step: int) -> Path:
    """Where a checkpoint is written until it is sealed."""
    return folder / f"{step}.writing"


def clean(folder: Path, report: Callable[[str], None]) -> None:
    """Makes the folder, and removes what dead saves have left in it. For one process, before any of them reads.
    Raises UserError when that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in remains(folder):
            remove(folder, name)
            report(f"removed {folder / name}, the remains of a save or removal that was cut off")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); mend its permissions") from error


def refusal(folder: Path, num_bytes: int) -> str:
    """Why so many bytes cannot be written into the folder; empty when they can, as far as one can tell."""
    if not folder.is_dir():
        return f"{folder} is gone"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written to"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder} does not answer ({error.strerror})"
    if free < num_bytes:
        return f"{folder} has {free / 1e6:.0f} MB free, and {num_bytes / 1e6:.0f} MB are needed"
    return ""


def remove(folder: Path, name: str) -> None:
    """Takes the name away first: a removal that is cut off leaves nothing that looks like a checkpoint."""
    unnamed = folder / f"{name.split('.', maxsplit=1)[0]}.deleting"
    if (folder / name).is_symlink():
        os.unlink(folder / name)
        return
    if name != unnamed.name:
        _make_free(unnamed)
        os.rename(folder / name, unnamed)
    shutil.rmtree(unnamed)


def set_aside(folder: Path, step: int) -> None:
    """Keeps a damaged checkpoint under another name."""
    aside = folder / f"{step}.damaged"
    _make_free(aside)
    os.rename(folder / str(step), aside)


def _make_free(path: Path) -> None:
    if path.is_symlink():
        os.unlink(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _named(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); mend its permissions") from error
    named = (entry for entry in entries if pattern.fullmatch(entry.name))
    return sorted(entry.name for entry in named if entry.is_symlink() or entry.is_dir(follow_symlinks=False))
