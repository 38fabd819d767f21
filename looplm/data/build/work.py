"""The folder that a build works in: nobody else's meanwhile, and gone when the build was refused."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from looplm.data.folder import make_folder, sync_folder
from looplm.data.remote import is_remote
from looplm.errors import UserError

_BYTES_A_WORKER = 8 << 20
"""Below this much input a process is not worth its start."""


@contextmanager
def locked(work: Path, out: Path | str) -> Iterator[None]:
    """Own the folder of a build; one that holds nothing finished is removed when the build is refused."""
    made = [folder for folder in (work, *work.parents) if not os.path.exists(folder)]
    is_new = work in made
    make_folder(work, out)
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"output {out} is being built by another process; wait for it, or stop it") from None
        try:
            yield
        except UserError:
            if is_new and next(work.rglob("*.unit"), None) is None:
                shutil.rmtree(work, ignore_errors=True)
                with suppress(OSError):  # not empty: somebody else's
                    for folder in made[1:]:
                        folder.rmdir()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"there is no space left for {work}, which needs twice the size of the tokens ({error.strerror}); "
                "make some, and run the same command again: it goes on"
            ) from None
    finally:
        os.close(lock)


def move(staging: Path, out: Path) -> None:
    """Rename a folder, durably."""
    sync_folder(staging)
    try:
        staging.replace(out)
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}; remove it or choose another folder") from error
    sync_folder(out.absolute().parent)


def hidden_folder(out: Path | str) -> Path:
    """Return the folder to make `out` in: beside it, for an address among temporary files.

    Raises UserError for what is no name of a folder.
    """
    if is_remote(out):
        return Path(tempfile.gettempdir(), f"looplm-{hashlib.sha256(str(out).encode()).hexdigest()[:16]}")
    out = Path(out)
    if out.name in ("", ".."):
        raise UserError(f"--out {out} is no name of a new folder; give one")
    return out.absolute().parent / f".{out.name}.partial"


def chosen_workers(num_workers: int | None, num_bytes: int) -> int:
    """Return the number of processes: if none is given, one for every core and some megabytes of input."""
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers={num_workers} must be positive; leave it out to use every core")
    return num_workers or max(1, min(_available_cores(), num_bytes // _BYTES_A_WORKER))


def _available_cores() -> int:
    # Containers and job schedulers give fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
