"""Runs the drill on a SLURM of its own, where its programs are installed: a run goes on by itself whatever is taken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.slurm_cluster import missing_programs

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(bool(missing_programs()), reason="apt-get install slurm-wlm munge")
def test_a_run_goes_on_by_itself_and_leaves_nothing_running() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "slurm_drill.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ *\d+ s  job \d+: ", done.stdout, re.MULTILINE)) == 7
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue
        assert words[0].rpartition(b"/")[2] not in (b"slurmctld", b"slurmd", b"munged")
