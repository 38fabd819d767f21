"""Runs the drill of all faults: nothing is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_nothing_is_lost_under_any_fault() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fault_drill.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[2:]
    assert len(rows) > 15
    assert all(row.endswith("| yes |") for row in rows), rows
