"""Trains a tiny run on a SLURM of its own on this machine, takes everything away from it, and looks at the end.

    apt-get install slurm-wlm munge
    python tools/slurm_drill.py

Two tasks on two nodes train with launch/slurm/cpu.sbatch. The job is signalled as before its time limit, requeued by an
operator, its node is drained and comes back, and a node is lost with all that it runs. Nobody starts it again but SLURM
and the template. Its end is compared with that of a run which nothing happened to, to the bit. Then two runs train side
by side in one allocation, and one is started with a mistake. Exit code 1 when something is not as it should be.
"""

import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.fault_drill import differences, make_run, read_rows  # noqa: E402
from tools.slurm_cluster import SlurmCluster, missing_programs  # noqa: E402

NUM_STEPS, SAVE_EVERY = 300, 50
LIMIT_S = 600
SETTINGS = (f"num_steps={NUM_STEPS}", f"checkpoint.every_steps={SAVE_EVERY}", "eval.every_steps=150")
CHANGES = tuple(word for setting in SETTINGS for word in ("--set", setting))
TEMPLATES = ROOT / "launch" / "slurm"


class Failed(Exception):
    """Something is not as it should be."""


class Drill:
    """One cluster, one config, several jobs."""

    def __init__(self, cluster: SlurmCluster, folder: Path):
        self.cluster, self.folder, self.config = cluster, folder, make_run(folder)
        self.started = time.monotonic()
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        (program := bin_folder / "looplm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m looplm "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.variables = {
            "PATH": f"{bin_folder}{os.pathsep}{cluster.environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "OMP_NUM_THREADS": "1",
        }

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:5.0f} s  {text}", flush=True)

    # --- a run that is taken everything ------------------------------------------------------------------------------

    def one_run(self) -> None:
        whole, workdir = self.folder / "runs" / "whole", self.folder / "runs" / "disturbed"
        job = self.submit("cpu.sbatch", self.config, whole, *CHANGES)
        self.ends(job, "COMPLETED")
        self.say(f"job {job}: undisturbed, {NUM_STEPS} steps on two nodes")

        job = self.submit("cpu.sbatch", self.config, workdir, *CHANGES)
        self.reaches(workdir, 60, job)
        # What --signal=USR1@300 does 300 s before the time limit.
        self.cluster.command("scancel", "--signal=USR1", job)
        self.restarted(job, 1)
        self.says(job, "SIGUSR1: saved after step", "exit code 75 after 0 restarts: started again")
        self.say(f"job {job}: SIGUSR1, saved, ended with 75, and was queued by its script")

        self.reaches(workdir, 140, job)
        lost = self.cluster.nodes[1]
        self.cluster.command("scontrol", "update", f"NodeName={lost}", "State=DRAIN", "Reason=drill")
        self.cluster.command("scontrol", "requeue", job)
        self.until(lambda: self.node(lost) == "IDLE+DRAIN", f"{lost} is drained")
        self.says(job, "SIGTERM: saved after step")
        self.until(lambda: self.state(job) == "PENDING", f"job {job} waits for the node")
        time.sleep(3)
        if (state := self.state(job)) != "PENDING":
            raise Failed(f"job {job} is {state} though a node is drained")
        self.cluster.command("scontrol", "update", f"NodeName={lost}", "State=RESUME")
        self.restarted(job, 2)
        self.say(f"job {job}: requeued while a node was drained; it waited, and went on when the node came back")

        self.reaches(workdir, 220, job)
        self.cluster.lose_node(lost)
        self.until(lambda: self.state(job) == "PENDING", f"job {job} is queued after a node was lost")
        self.cluster.command("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=power")
        self.cluster.start_node(lost)  # which brings it back (ReturnToService)
        self.restarted(job, 3)
        self.say(f"job {job}: lost a node with all that it ran, and went on when it came back")

        self.ends(job, "COMPLETED")
        self.equals(workdir, whole)
        self.say(f"job {job}: done after 3 restarts, the bits of the undisturbed run")

    # --- runs side by side -------------------------------------------------------------------------------------------

    def side_by_side(self) -> None:
        """Two runs of two tasks each share an allocation."""
        good = [self.folder / "runs" / name for name in ("left", "right")]
        lines = [f"{self.config} {workdir} {' '.join(CHANGES)}" for workdir in good]
        (runs := self.folder / "runs.txt").write_text("\n".join(["# config workdir", *lines]) + "\n")
        share = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0")
        job = self.submit("side_by_side.sbatch", runs, sbatch=share)
        for workdir in good:
            self.reaches(workdir, 60, job)
        self.cluster.command("scancel", "--signal=USR1", job)
        self.restarted(job, 1)
        self.ends(job, "COMPLETED")
        for workdir in good:
            self.equals(workdir, self.folder / "runs" / "whole")
        self.say(f"job {job}: two steps side by side, signalled once, both with the bits of the undisturbed run")

    def mistake(self) -> None:
        workdir = self.folder / "runs" / "mistake"
        job = self.submit("cpu.sbatch", self.config, workdir, "--set", "num_steps=0")
        self.ends(job, "FAILED")
        found = self.cluster.job(job)
        if (found["ExitCode"], found["Restarts"]) != ("2:0", "0"):
            raise Failed(f"a mistake ended with {found['ExitCode']} after {found['Restarts']} restarts")
        self.say(f"job {job}: a mistake, exit code 2, not started again")

    # --- what is asked of SLURM --------------------------------------------------------------------------------------

    def submit(self, template: str, *words: Any, sbatch: tuple[str, ...] = ("--cpus-per-task=1",)) -> str:
        out = f"--output={self.folder}/job-%j.log"
        return self.cluster.submit(out, *sbatch, str(TEMPLATES / template), *map(str, words), **self.variables)

    def state(self, job: str) -> str:
        return self.cluster.job(job)["JobState"]

    def node(self, name: str) -> str:
        return self.cluster.node_state(name)

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            if time.monotonic() > deadline:
                raise Failed(f"not within {LIMIT_S} s: {what}\n{self.cluster.command('squeue')}")
            time.sleep(0.2)

    def ends(self, job: str, state: str) -> None:
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
        self.until(lambda: self.state(job) in over, f"job {job} ends")
        if (found := self.state(job)) != state:
            raise Failed(f"job {job} is {found} and not {state}:\n{self.output(job)}")

    def reaches(self, workdir: Path, step: int, job: str) -> None:
        def is_there() -> bool:
            if self.state(job) in ("FAILED", "COMPLETED"):
                raise Failed(f"job {job} ended before step {step}:\n{self.output(job)}")
            return max((int(row["step"]) for row in read_rows(workdir)), default=0) >= step

        self.until(is_there, f"job {job} reaches step {step}")

    def restarted(self, job: str, times: int) -> None:
        """It runs again, or has done so: on a fast machine its end can come before the first look."""

        def is_so() -> bool:
            found = self.cluster.job(job)
            return found["Restarts"] == str(times) and found["JobState"] in ("RUNNING", "COMPLETED")

        self.until(is_so, f"job {job} runs after {times} restarts")

    def output(self, job: str) -> str:
        logs = [self.folder / f"job-{job}.log", *sorted((self.folder / "runs" / "logs" / job).rglob("*.log"))]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs if log.exists())

    def says(self, job: str, *texts: str) -> None:
        for text in texts:
            self.until(lambda text=text: text in self.output(job), f"job {job} says {text!r}")

    def equals(self, workdir: Path, expected: Path) -> None:
        if problems := differences(workdir, expected):
            raise Failed(f"{workdir.name} differs from {expected.name}: {'; '.join(problems)}")


def main() -> int:
    if missing := missing_programs():
        print(f"{', '.join(missing)}: not installed; apt-get install slurm-wlm munge", file=sys.stderr)
        return 2
    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster ends too
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, SlurmCluster(Path(folder)) as cluster:
        drill = Drill(cluster, Path(folder))
        try:
            drill.one_run()
            drill.side_by_side()
            drill.mistake()
        except Failed as failure:
            print(f"failed: {failure}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
