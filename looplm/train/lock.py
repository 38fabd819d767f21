"""One job at a time trains in a workdir: two would overwrite each other's checkpoints and mix their lines.

The lock is the kernel's, on WORKDIR/.lock: it is gone when the process that holds it is, however that ended. What the
file says is for people.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from looplm.errors import UserError, warn

POLL_S = 1.0


@contextmanager
def only_one(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Inside, no other process trains in `folder`, which must exist. patience_s: how long another is waited for.

    Raises UserError when one does, OSError when the file cannot be opened. Where the file system has no locks it says
    so and goes on without.
    """
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _lock(file, time.monotonic() + patience_s)
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            raise UserError(
                f"workdir {folder} is in use by {holder}; wait for it or stop it, or give another --workdir"
            ) from None
        except OSError as error:
            warn(f"workdir {folder} cannot be locked ({error.strerror}): let no second job train in it")
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _lock(file: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
