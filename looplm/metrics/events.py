"""What happened to a run beside its steps: WORKDIR/events.jsonl, one object a line, kept over restarts.

Kinds: `time` (where the wall-clock went, see `timing`), `skipped` (an update that was not made, with its batch),
`rewind` (batches that are passed over from then on: a part of the run's state), `saved` (a checkpoint is whole),
`unlabelled` (how many steps had no label so far), `note` (what was said about the run's health, once each),
`evaluation` (was cut off, or made up), `preempted`, `hung`, `corrupted`, `tracked` (what services that
follow runs know it by).
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from looplm.errors import UserError, warn
from looplm.masking import mask_tree

NOTE, EVALUATION = "note", "evaluation"


class Events:
    """Appends, if this process is the one that writes. A line is one write: it is there whole, or it is not there."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._has_warned = False

    def note(self, kind: str, **fields: Any) -> None:
        """As `add`; that the file cannot be written is said once, and the event is lost."""
        try:
            self.add(kind, **fields)
        except OSError as error:
            if not self._has_warned:
                warn(f"{self.path} cannot be written ({error.strerror}); it will lack events, the first is {kind!r}")
            self._has_warned = True

    def add(self, kind: str, **fields: Any) -> None:
        """On disk when it returns. Raises OSError when the file cannot be written."""
        if not self.writes:
            return
        line = json.dumps({"kind": kind, "time": round(time.time(), 3)} | mask_tree(fields), default=_plain) + "\n"
        # A line that a killed process left half-written must not swallow this one.
        lead = "" if self._ends_whole() else "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (lead + line).encode())
            os.fsync(file)
        finally:
            os.close(file)

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All of one kind, the oldest first; lines that were cut off are passed over."""
        return [event for event in read_events(self.path) if event["kind"] == kind]

    def _ends_whole(self) -> bool:
        if not self.path.exists() or not (size := self.path.stat().st_size):
            return True
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every event, the oldest first; none for a missing file. Raises UserError for a file that holds anything else."""
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off
        if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
            raise UserError(f"{path} line {number} is no event; delete that line")
        events.append(event)
    return events


def _plain(value: Any) -> Any:
    """numpy numbers and arrays as JSON has them."""
    return value.tolist()


def finite(value: float) -> float | str:
    """As a number of JSON, or its name where it has none."""
    return float(value) if math.isfinite(value) else str(float(value))
