"""Where the wall-clock of a run goes, over all its starts.

Every moment of a process belongs to one part, so the parts sum to the whole. `step` is the good part: steps that were
not done before. A process adds its times to the run's events now and then, and what lies between its last word and the
next start counts as `down`.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from looplm.metrics.events import Events

TIME = "time"
"""The kind of event."""
PARTS = {
    "init": "setting up",
    "compile": "compiling",
    "restore": "restoring",
    "data_wait": "waiting for data",
    "step": "steps",
    "checkpoint": "held up by saves",
    "evaluation": "evaluating",
    "lost": "steps done again",
    "down": "down",
}
"""The parts, and what people call them."""


class Stopwatch:
    """Times of one process; what is not said to be something else is `init`."""

    def __init__(self, started: float | None = None) -> None:
        """started: time.time() at which the process began; now when left out."""
        now = time.time()
        self.started = now if started is None else min(started, now)
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "init", time.monotonic() - (now - self.started)

    def switch(self, part: str) -> str:
        """From now on time belongs to `part`. Returns the one before."""
        now, before = time.monotonic(), self._part
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    def credit(self, part: str | None = None) -> None:
        """What has passed since the last call belongs to `part`, else to the one that goes on, which goes on."""
        goes_on = self._part
        self._part = part or goes_on
        self.switch(goes_on)

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        before = self.switch(part)
        try:
            yield
        finally:
            self.switch(before)

    def seconds(self) -> dict[str, float]:
        """Of all parts until now."""
        self.switch(self._part)
        return dict(self._seconds)


class Timekeeper(Stopwatch):
    """A stopwatch that knows what earlier processes of the run have used, and writes down what this one does."""

    def __init__(self, events: Events, started: float | None = None) -> None:
        super().__init__(started)
        earlier = events.read(TIME)
        self._events, self._earlier = events, list(_last_words(earlier).values())
        self._noted = time.monotonic()
        self.reached = max((int(event["step"]) for event in earlier), default=0)
        """The last step that was ever done: up to it steps are done again."""

    def begin(self, step: int) -> None:
        """From now on time belongs to a step, new or done again."""
        self.switch("lost" if step <= self.reached else "step")

    def note(self, step: int, *, every_s: float = 0.0) -> None:
        """Writes down what was used so far, unless that was done less than so many seconds ago."""
        if time.monotonic() - self._noted >= every_s:
            self._events.note(TIME, **self._event(step))
            self._noted = time.monotonic()

    def whole(self) -> dict[str, float]:
        """Seconds of every part over all processes of the run."""
        return whole([*self._earlier, self._event(0)])

    def metrics(self) -> dict[str, float]:
        seconds = self.whole()
        return {"goodput/fraction": goodput(seconds)} | {f"goodput/{part}_s": value for part, value in seconds.items()}

    def _event(self, step: int) -> dict[str, Any]:
        seconds = {part: round(value, 4) for part, value in self.seconds().items()}
        return {"started": round(self.started, 3), "step": step, "seconds": seconds}


def whole(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of every part over all processes of a run, from its `time` events; empty without one."""
    last = _last_words(events)
    total: dict[str, float] = dict.fromkeys(PARTS, 0.0) if last else {}
    until: float | None = None
    for started in sorted(last):
        seconds = last[started]["seconds"]
        for part, value in seconds.items():
            total[part] += value
        if until is not None:
            total["down"] += max(0.0, started - until)  # clocks of several hosts may differ
        until = started + sum(seconds.values())
    return total


def _last_words(events: Sequence[Mapping[str, Any]]) -> dict[float, Mapping[str, Any]]:
    """Of every process, by its start."""
    return {event["started"]: event for event in events}


def goodput(seconds: Mapping[str, float]) -> float:
    """The share of new steps in the whole."""
    return seconds["step"] / max(sum(seconds.values()), 1e-9)


def line(seconds: Mapping[str, float]) -> str:
    """For people: the share, the whole, and the parts from the largest."""
    parts = sorted(((value, part) for part, value in seconds.items() if value >= 0.05), reverse=True)
    told = ", ".join(f"{PARTS[part]} {value:.1f} s" for value, part in parts)
    return f"goodput {goodput(seconds):.1%} of {sum(seconds.values()):.1f} s: {told}"


def process_started() -> float:
    """time.time() at which this process began, by the system; now where the system does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.time()
    return time.time() - max(age, 0.0)
