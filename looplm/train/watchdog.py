"""Ends a process in which no step is done any more: a collective that waits for ever, storage that does not answer.

It says where every thread stands first; with several processes, long before that, who of them is behind. The limit is
learned from the steps before: many times their median, and never below a minute. It counts from the second step on, and
not during evaluations and saves.
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
from looplm.distributed.watch import Watch
from looplm.errors import StoppedItself, note

LEAST_S = 60.0
TIMES_THE_MEDIAN = 20
TELL, NAME = 0.25, 0.5
"""Shares of the limit, after which every process tells process 0 how far it is, and that one names who is behind."""
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
        self._step = self._begun = 0
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

    def begin(self, step: int) -> None:
        """A step was handed to the devices."""
        self._begun = step

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
        stall: float | None = None
        said = 0  # 1: this process has told how far it is, 2: who is behind was named
        while not self._over.wait(min(1.0, LEAST_S / 10)):
            since, limit, watch = self._since, self.limit_s, Watch.current
            if since != stall:
                stall, said = since, 0
                if watch is not None:
                    watch.goes_on()
            idle_s = 0.0 if since is None else time.monotonic() - since
            if idle_s > limit:
                self._fire(limit)
                return
            if watch is not None and said < 2 and idle_s > (TELL, NAME)[said] * limit:
                said += 1
                if said == 1:
                    watch.stalled(self._begun)
                elif behind := watch.behind():
                    note(f"no step was done for {idle_s:.0f} s: {behind}; {limit:.0f} s are taken for a hang")

    def _fire(self, limit: float) -> None:
        path = self.folder / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        stderr = sys.__stderr__
        assert stderr is not None
        behind = f"; {found}" if Watch.current and (found := Watch.current.behind()) else ""
        text = (
            f"no step was done for {limit:.0f} s after step {self._step}{behind}, so this process ends; the stacks of "
            f"its threads are above and in {path}. Started again, the run goes on from its newest checkpoint"
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
