"""Ends a process in which no step is done any more: a collective that waits for ever, storage that does not answer.

It says where every thread stands first. The limit is learned from the steps before: many times their median, and never
below a minute. It counts from the second step on, and not during evaluations and saves.
"""

import faulthandler
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from looplm.distributed import end_process
from looplm.errors import StoppedItself

LEAST_S = 60.0
TIMES_THE_MEDIAN = 20
REMEMBERED = 101
"""Steps whose times are known."""
FILE_S = 10.0
"""Storage that does not answer may be what hangs: the file of stacks is given up after so long."""


class Watchdog:
    """Works between `with`; told of every step by `beat`."""

    def __init__(self, folder: Path, note: Callable[[float, str], None] = lambda limit_s, path: None):
        """note: called with the limit and the file of stacks before the process ends."""
        self.folder, self.note = folder, note
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._since: float | None = None
        """When the last step was done; None before the first and while suspended."""
        self._step = 0
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._thread = threading.Thread(target=self._run, name="looplm-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def limit_s(self) -> float:
        return max(LEAST_S, TIMES_THE_MEDIAN * median(self._times)) if self._times else LEAST_S

    def beat(self, step: int) -> None:
        """A step was done."""
        now = time.monotonic()
        if self._since is not None:
            self._times.append(now - self._since)
        self._since, self._step = now, step

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, nothing counts."""
        armed, self._since = self._since is not None, None
        try:
            yield
        finally:
            self._since = time.monotonic() if armed else None

    def _run(self) -> None:
        while not self._over.wait(min(1.0, LEAST_S / 4)):
            since, limit = self._since, self.limit_s
            if since is not None and time.monotonic() - since > limit:
                self._fire(limit)
                return

    def _fire(self, limit: float) -> None:
        path = self.folder / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        stderr = sys.__stderr__
        assert stderr is not None
        text = (
            f"no step was done for {limit:.0f} s after step {self._step}, so this process ends; the stacks of its "
            f"threads are above and in {path}. Started again, the run goes on from its newest checkpoint"
        )
        faulthandler.dump_traceback(stderr, all_threads=True)
        print(f"looplm: {text}", file=stderr, flush=True)
        writer = threading.Thread(target=self._write, args=(path, limit), daemon=True)
        writer.start()
        writer.join(FILE_S)
        end_process(StoppedItself.code, text)

    def _write(self, path: Path, limit: float) -> None:
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.note(limit, path.name)
