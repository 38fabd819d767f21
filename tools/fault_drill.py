"""Trains a tiny model under one fault after another, starts it again, and shows whether anything was lost.

    python tools/fault_drill.py                      # all faults, minutes
    python tools/fault_drill.py nan-at-a-step hang   # these

Every fault is put into a process of its own (`tools/faults.py`); looplm knows nothing of it. After the fault the same
command is given again without one, and the end is compared with that of a run which nothing happened to: every line of
metrics.jsonl but for times, and every parameter, to the bit. Exit code 1 when a row is not as it should be.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
NUM_STEPS, SAVE_EVERY = 12, 4
VOCAB_SIZE = 384
LIMIT_S = 300
NOTHING = "none"
MEASURED = ("perf/", "data/wait_s", "ckpt/", "goodput/", "model/")
"""Times, and what only the first line of a start has: what may differ between two runs."""
KILLED = -signal.SIGKILL


class Drill(NamedTuple):
    """What happens, how the process ends, and what its last words hold."""

    install: Callable[[], object]
    codes: set[int]
    """Of all processes."""
    says: str = ""
    processes: int = 1
    """The fault is put into the last of them."""
    loses: tuple[int, ...] = ()
    """Steps whose update is not made: the end differs from that of the undisturbed run."""
    changes: tuple[str, ...] = ()
    """--set of the start with the fault."""


class Ended(NamedTuple):
    codes: list[int]
    said: str


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def drills() -> dict[str, Drill]:
    """All faults by name. Imports jax, so only processes that train call it."""
    import numpy as np

    from looplm.checkpoint.writer import CheckpointWriter
    from looplm.train import trainer, watchdog
    from looplm.train.batch import BatchLayout
    from looplm.train.preemption import Preemption
    from tools import faults

    def hang() -> None:
        watchdog.LEAST_S = 2.0
        faults.when_written(6, faults.hang)

    def flip() -> None:
        """Killed once checkpoint 8 is whole; then one byte of it is changed, see `between`."""
        newest = Path(sys.argv[sys.argv.index("--workdir") + 1]) / "checkpoints" / "8"

        def kill_when_saved() -> None:
            while not newest.exists():
                time.sleep(0.05)
            kill()

        faults.when_written(10, kill_when_saved)

    def signalled(number: signal.Signals) -> Callable[[], object]:
        return lambda: faults.when_written(6, faults.send(number))

    def corrupt() -> None:
        """A device whose second computation differs by one bit."""
        start = trainer.CorruptionCheck.start

        def start_badly(*arguments: object) -> object:
            digests = start(*arguments)
            first, second = digests.gradient_2N
            return digests._replace(gradient_2N=(first, np.asarray(second) + np.uint32([1, 0])))

        trainer.CorruptionCheck.start = start_badly

    def out_of_memory() -> None:
        import jax

        def fail() -> None:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes"
            )

        faults.before_call(Preemption, "ask", 6, fail)

    return {
        "kill-in-fetch": Drill(lambda: faults.before_call(BatchLayout, "place", 7, kill), {KILLED}),
        "kill-in-step": Drill(lambda: faults.before_call(Preemption, "ask", 7, kill), {KILLED}),
        "kill-before-save": Drill(lambda: faults.before_call(CheckpointWriter, "save", 2, kill), {KILLED}),
        "kill-in-write": Drill(lambda: faults.after_save(2, kill), {KILLED}),
        "kill-in-commit": Drill(lambda: faults.before_call(CheckpointWriter, "_commit", 2, kill), {KILLED}),
        "sigterm": Drill(signalled(signal.SIGTERM), {75}, "SIGTERM: saved after step 6"),
        "sigusr1": Drill(signalled(signal.SIGUSR1), {75}, "SIGUSR1: saved after step 6"),
        "sigterm-to-one-of-two": Drill(signalled(signal.SIGTERM), {75}, ": saved after step", processes=2),
        "sigusr1-to-one-of-two": Drill(signalled(signal.SIGUSR1), {75}, ": saved after step", processes=2),
        "lost-process-of-two": Drill(lambda: faults.when_written(6, kill), {KILLED, 1}, "was lost", processes=2),
        "hang": Drill(hang, {76}, "no step was done for 2 s after step"),
        "nan-at-step-1": Drill(lambda: faults.spoil_steps({1}), {0}, loses=(1,)),
        "nan-at-a-step": Drill(lambda: faults.spoil_steps({5}), {0}, loses=(5,)),
        "nan-for-ever": Drill(
            lambda: faults.spoil_steps(range(6, 100)), {76}, "the last 3 updates were not made",
            changes=("optim.guard.stop_after=3",),
        ),
        "corrupt-device": Drill(
            corrupt, {76}, "computed one gradient twice with different bits: cpu 0",
            changes=("optim.guard.sdc_check=5",),
        ),
        "out-of-memory": Drill(out_of_memory, {2}, "the cheapest remedies: --set"),
        "flipped-byte": Drill(flip, {KILLED}),
    }  # fmt: skip


def between(name: str, workdir: Path) -> None:
    """What happens to the run directory before the second start."""
    if name == "flipped-byte":
        newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)


# --- a start of the run ----------------------------------------------------------------------------------------------


def child(name: str, arguments: list[str]) -> None:
    """Runs in a process of its own: breaks something, then is `looplm`."""
    sys.path.insert(0, str(ROOT))
    if name != NOTHING:
        drills()[name].install()
    from looplm.cli import main

    sys.argv = ["looplm", *arguments]
    main()


def start(workdir: Path, config: Path, name: str, *, processes: int = 1, changes: Sequence[str] = ()) -> Ended:
    """Trains in so many processes with two devices together, the last of them with the fault."""
    words = ["train", str(config), "--workdir", str(workdir)]
    words += [word for change in changes for word in ("--set", change)]
    job = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(processes)] if processes > 1 else []
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // processes}",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", name if index == processes - 1 else NOTHING, *words]
            + (["--process-id", str(index), *job] if job else []),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for index in range(processes)
    ]  # fmt: skip
    with ThreadPoolExecutor() as readers:
        said = list(readers.map(lambda process: process.communicate(timeout=LIMIT_S)[0], running))
    return Ended([process.returncode for process in running], "\n".join(said))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_run(folder: Path) -> Path:
    """A dataset, and a config file that is the smallest run worth the name."""
    from looplm.config.load import to_json
    from looplm.config.schema import Checkpoint, Data, Eval, Log, Loop, Model, Optim, Run, Schedule
    from looplm.data.formats.read import read_documents
    from looplm.data.tokenizer import train_tokenizer
    from looplm.data.writer import build_dataset

    text = Path(json.__file__).parents[1] / "email"
    tokenizer = train_tokenizer((str(document.content) for document in read_documents([text])), VOCAB_SIZE, folder)
    build_dataset([text], tokenizer, folder / "data", validation_fraction=0.3, num_workers=1)
    run = Run(
        num_steps=NUM_STEPS,
        model=Model(vocab_size=VOCAB_SIZE, dim=16, num_heads=2, hidden_dim=32, block_layers=1),
        loop=Loop(num_loops=3),
        optim=Optim(learning_rate=1e-2, schedule=Schedule(warmup_steps=2), ema_decay=0.9),
        data=Data(
            train=str(folder / "data" / "train"), validation=str(folder / "data" / "validation"),
            sequence_length=16, batch_tokens=128,
        ),
        checkpoint=Checkpoint(every_steps=SAVE_EVERY),
        eval=Eval(every_steps=6, max_batches=2),
        log=Log(tensorboard=False),
    )  # fmt: skip
    (folder / "config.json").write_text(to_json(run))
    path = folder / "config.py"
    path.write_text(
        "from pathlib import Path\nfrom looplm.config.load import from_json\n\n"
        "def config():\n    return from_json(Path(__file__).with_suffix('.json'))\n"
    )
    return path


# --- what came of it -------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    code: str
    resumed: str
    lost: str
    seconds: float
    problems: list[str]


def drill(name: str, fault: Drill, config: Path, expected: Path) -> Outcome:
    """Trains under a fault, then without it, and compares the end with that of the undisturbed run."""
    workdir, problems = config.parent / name, []
    before = time.monotonic()
    first = start(workdir, config, name, processes=fault.processes, changes=fault.changes)
    seconds = time.monotonic() - before
    code = first.codes[-1]
    if any(ended not in fault.codes for ended in first.codes):
        problems.append(f"exit codes {first.codes} instead of {sorted(fault.codes)}")
    if fault.says not in first.said:
        problems.append(f"nobody said {fault.says!r}")
    if problems:
        problems.append(first.said)
    between(name, workdir)
    last_step = max((int(row["step"]) for row in read_rows(workdir)), default=0)
    if code == 0 and fault.loses:
        return Outcome("0", "-", compare_skipped(workdir, expected, fault.loses, problems), seconds, problems)
    second = start(workdir, config, NOTHING, processes=fault.processes, changes=fault.changes)
    if set(second.codes) != {0}:
        problems += [f"the second start ended with {second.codes}", second.said]
        return Outcome(str(code), "no", "-", seconds, problems)
    after = re.search(r"resuming .* after step (\d+)", second.said)
    resumed_at = int(after[1]) if after else 0
    problems += differences(workdir, expected)
    return Outcome(
        str(code), f"after step {resumed_at}", f"{max(last_step - resumed_at, 0)} done again", seconds, problems
    )


def compare_skipped(workdir: Path, expected: Path, skipped: Sequence[int], problems: list[str]) -> str:
    """Up to the first of these steps the lines are those of the undisturbed run, and each is lost and no other."""
    rows, wanted = read_rows(workdir), read_rows(expected)
    losses = [row for row in rows if "train/loss" in row]
    if [row["step"] for row in losses if row["optim/skipped_in_a_row"]] != list(skipped):
        problems.append(f"skipped are {[row['step'] for row in losses if row['optim/skipped_in_a_row']]}")
    same = [row["step"] for row in rows if row["step"] < skipped[0] and row not in wanted]
    if same:
        problems.append(f"the lines of steps {same} differ")
    return f"{losses[-1]['optim/skipped']:.0f} update"


def differences(workdir: Path, expected: Path) -> list[str]:
    """Between two runs: every line but for times, and every parameter and average, to the bit."""
    import jax
    import numpy as np

    import looplm

    problems = []
    rows, wanted = read_rows(workdir), read_rows(expected)
    if rows != wanted:
        steps = sorted({row["step"] for row in [*rows, *wanted] if row not in rows or row not in wanted})
        problems.append(f"lines of metrics.jsonl differ: steps {steps}")
    for ema in (False, True):
        ours, theirs = (looplm.load(folder, ema=ema).params for folder in (workdir, expected))
        same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), ours, theirs)
        problems += [
            f"parameters differ: {jax.tree_util.keystr(p)}"
            for p, v in jax.tree_util.tree_leaves_with_path(same)
            if not v
        ]
    return problems


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """The lines without what was timed; NaN as text, so that it equals itself."""
    if not (path := workdir / "metrics.jsonl").exists():
        return []
    rows = [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]
    return [{name: value for name, value in row.items() if not name.startswith(MEASURED)} for row in rows]


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", help="names; all when left out")
    parser.add_argument("--list", action="store_true", help="only show the names")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["JAX_PLATFORMS"] = "cpu"
    known = drills()
    if arguments.list:
        print("\n".join(known))
        return 0
    if unknown := set(arguments.faults) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: no such fault; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as name:
        config = make_run(Path(name))
        whole = Path(name) / "whole"
        if (ended := start(whole, config, NOTHING)).codes != [0]:
            raise SystemExit(f"the undisturbed run failed:\n{ended.said}")
        print("| fault | exit code | started again | lost | as expected |\n|---|---|---|---|---|", flush=True)
        failed = False
        for fault in arguments.faults or known:
            outcome = drill(fault, known[fault], config, whole)
            verdict = "yes" if not outcome.problems else "NO"
            print(f"| {fault} | {outcome.code} | {outcome.resumed} | {outcome.lost} | {verdict} |", flush=True)
            for problem in outcome.problems:
                failed = True
                print(f"  {problem}", file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
