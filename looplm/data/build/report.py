"""What was built, what was left out and why: for the console, and as `build_report.json` in the folder.

The file holds no time and no path of a machine, so two builds of the same input give the same bytes.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from looplm.data.account import Account, reasons
from looplm.data.manifest import Manifest

REPORT_FILE = "build_report.json"
WHOLE = "."
"""Key of an undivided dataset."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is; given to the callback after some megabytes."""

    stage: str
    """`encoding`, then `writing`."""
    num_files: int
    total_files: int
    num_bytes: int
    """Bytes on disk of the input read so far."""
    total_bytes: int
    num_tokens: int
    seconds: float
    new_tokens: int
    new_bytes: int
    """Of these, what was not there from an earlier start: a rate is that over the seconds."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built."""

    path: Path | str
    """Or its address."""
    datasets: dict[str, Manifest]
    """Manifest of every dataset by its folder under `path`; the key is "." for an undivided dataset."""
    skipped: dict[str, int]
    """Records and files that gave no document, by reason."""
    notes: dict[str, int]
    """What was found and kept, by kind."""
    examples: dict[str, list[str]]
    """The first few that were left out, by reason, as `file:record: detail`."""
    num_files: int
    seconds: float
    num_workers: int
    template: str = ""
    """Which one wrote the examples."""
    was_there: bool = False
    """The dataset was complete before: nothing was done."""

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name}: {part.num_documents} documents and {part.num_tokens} tokens"
            for name, part in self.datasets.items()
            if name != WHOLE
        )
        took = "was there already" if self.was_there else f"in {self.seconds:.1f} s"
        return (
            f"{self.num_documents} documents, {self.num_bytes / 1e6:.1f} MB, {self.num_tokens / 1e6:.2f} M tokens"
            f"{f' ({parts})' if parts else ''} {took}; skipped: {reasons(self.skipped)}"
        )

    def details(self) -> list[str]:
        """Return lines on what was found and left out, with the first example of every reason."""
        template = [f"  template: {self.template}"] if self.template else []
        return [*template, *Account(Counter(self.skipped), Counter(self.notes), self.examples).details()]

    @property
    def num_tokens(self) -> int:
        return sum(manifest.num_tokens for manifest in self.datasets.values())

    @property
    def num_documents(self) -> int:
        return sum(manifest.num_documents for manifest in self.datasets.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the texts in UTF-8."""
        return sum(manifest.num_bytes for manifest in self.datasets.values())

    def dump(self, build: str, options: dict[str, Any]) -> bytes:
        """Return the bytes of `build_report.json`; `build` is the digest of all that the result depends on."""
        fields = {
            "build": build,
            "options": options,
            "template": self.template,
            "num_files": self.num_files,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "skipped": dict(sorted(self.skipped.items())),
            "notes": dict(sorted(self.notes.items())),
            "examples": dict(sorted(self.examples.items())),
        }
        return (json.dumps(fields, indent=2) + "\n").encode()


class Meter:
    """Counts what is done and tells the callback."""

    def __init__(
        self, total_files: int, total_bytes: int, started: float, callback: Callable[[Progress], None] | None
    ) -> None:
        self._state = Progress("encoding", 0, total_files, 0, total_bytes, 0, 0.0, 0, 0)
        self._started, self._callback = started, callback

    def encoded(self, num_bytes: int, num_files: int, num_tokens: int, *, is_new: bool) -> None:
        state = self._state
        self._tell(
            num_files=state.num_files + num_files,
            num_bytes=state.num_bytes + num_bytes,
            num_tokens=state.num_tokens + num_tokens,
            new_tokens=state.new_tokens + num_tokens * is_new,
            new_bytes=state.new_bytes + num_bytes * is_new,
        )

    def writing(self) -> None:
        self._tell(stage="writing", new_tokens=0)

    def wrote(self, num_tokens: int) -> None:
        self._tell(new_tokens=self._state.new_tokens + num_tokens)

    def _tell(self, **changes: Any) -> None:
        self._state = dataclasses.replace(self._state, seconds=time.monotonic() - self._started, **changes)
        if self._callback is not None:
            self._callback(self._state)
