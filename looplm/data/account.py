"""What of the input is left out of a dataset and why, and what was found and kept."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that is no document, or a file that is not read."""

    record: int
    """-1 for a whole file."""
    reason: str
    detail: str = ""


@dataclass
class Account:
    """What was left out, and what was found and kept. Grows by `+=`."""

    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first few of every reason, as `name:record: detail`; records are counted from 1, like lines."""
    num_records: int = 0
    num_lost: int = 0
    """Records of files with many, and how many of these were left out without being empty."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Account":
        """Return the account whose `vars` were written as JSON, among others."""
        counts = (fields["num_records"], fields["num_lost"])
        return cls(Counter(fields["skipped"]), Counter(fields["notes"]), fields["examples"], *counts)

    def skip(self, name: str, skipped: Skipped) -> None:
        self.skipped[skipped.reason] += 1
        shown = self.examples.setdefault(skipped.reason, [])
        if len(shown) < _MAX_EXAMPLES:
            place = f":{skipped.record + 1}" if skipped.record >= 0 else ""
            shown.append(f"{name}{place}{': ' * bool(skipped.detail)}{skipped.detail}")

    def details(self) -> list[str]:
        """Return lines on what was left out and found, with the first example of every reason."""
        lines = [f"  skipped {reason}: {shown[0]}" for reason, shown in sorted(self.examples.items()) if shown]
        return [*lines, f"  kept: {reasons(self.notes)}"] if self.notes else lines

    def __iadd__(self, other: "Account") -> "Account":
        self.skipped += other.skipped
        self.notes += other.notes
        self.num_records += other.num_records
        self.num_lost += other.num_lost
        for reason, shown in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine.extend(shown[: _MAX_EXAMPLES - len(mine)])
        return self


def reasons(skipped: Mapping[str, int]) -> str:
    """Return `2 empty, 1 nul` of what gave no document, or `none`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"
