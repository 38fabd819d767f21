"""How long is the way to the first step? The help, and a tiny run whose programs were compiled before; medians.

    python tools/bench_start.py

Every start is a process of its own, timed from outside: until it ends (`--help`), until the line of its first step is
in metrics.jsonl, and until it ends after that step.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.fault_drill import make_run  # noqa: E402


class Start(NamedTuple):
    first_step: float
    end: float
    cpu: float
    """Seconds of all its threads: what other work on the machine changes least."""


def used() -> float:
    """CPU seconds of all processes that have been started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }


def show_help(folder: Path) -> Start:
    started, before = time.perf_counter(), used()
    subprocess.run([sys.executable, "-m", "looplm", "--help"], check=True, capture_output=True, env=environment(folder))
    seconds = time.perf_counter() - started
    return Start(seconds, seconds, used() - before)


def train(config: Path, workdir: Path) -> Start:
    words = ["train", str(config), "--workdir", str(workdir)]
    for setting in ("num_steps=1", "optim.schedule.warmup_steps=0", "eval.every_steps=0"):
        words += ["--set", setting]
    metrics, started, before = workdir / "metrics.jsonl", time.perf_counter(), used()
    process = subprocess.Popen(
        [sys.executable, "-m", "looplm", *words],
        env=environment(config.parent), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(process.communicate()[1])
        time.sleep(0.005)
    first = time.perf_counter() - started
    process.communicate()
    return Start(first, time.perf_counter() - started, used() - before)


def bench_start(rounds: Annotated[int, typer.Option(help="Starts of each kind.")] = 5) -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_run(folder)
        cold = train(config, folder / "cold")
        helps: list[Start] = []
        starts: list[Start] = []
        for number in range(rounds):
            helps.append(show_help(folder))
            starts.append(train(config, folder / f"run-{number}"))

    def median(kind: list[Start], name: str) -> str:
        return f"{statistics.median(getattr(start, name) for start in kind):.2f}"

    print("| what | to the first step | to the end | CPU seconds |\n|---|---|---|---|")
    for what, kind in (
        ("`looplm --help`", helps),
        ("nothing compiled before", [cold]),
        ("all compiled before", starts),
    ):
        first = "" if kind is helps else median(kind, "first_step")
        print(f"| {what} | {first} | {median(kind, 'end')} | {median(kind, 'cpu')} |")


if __name__ == "__main__":
    typer.run(bench_start)
