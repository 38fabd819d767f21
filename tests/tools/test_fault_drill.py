"""A part of the drill: a signal to one of two processes ends both after the same step. All faults are a slow test."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = ("sigterm-to-one-of-two",)


def drill(*names: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fault_drill.py", *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[2:]


@pytest.mark.multiprocess
def test_nothing_is_lost() -> None:
    rows = drill(*FEW)
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(FEW)
    assert all(row.endswith("| yes |") for row in rows), rows


@pytest.mark.slow
def test_nothing_is_lost_under_any_fault() -> None:
    rows = drill()
    assert len(rows) > 15
    assert all(row.endswith("| yes |") for row in rows), rows
