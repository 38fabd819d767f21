"""`looplm`, killed by itself in a phase of a run: python dying.py PHASE TIME ARGUMENTS...

TIME counts from 1: the first, second, ... time that the phase is come to. No phase is left by an exception: SIGKILL
gives no code a chance to tidy up.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from looplm.checkpoint import folder, writer
from looplm.cli import main
from looplm.train.batch import BatchLayout
from looplm.train.trainer import Trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def before(owner: Any, name: str, when: int, fits: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Dies when a function is called for the `when`th time with arguments that fit."""
    original, calls = getattr(owner, name), itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if fits(*arguments, **options) and next(calls) == when:
            die()
        return original(*arguments, **options)

    setattr(owner, name, call)


def after(owner: Any, name: str, when: int) -> None:
    """Dies when a function returns for the `when`th time."""
    original, calls = getattr(owner, name), itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if next(calls) == when:
            die()
        return result

    setattr(owner, name, call)


class Step:
    """A compiled training step, in which the process dies: after so much of the time that it takes."""

    def __init__(self, compiled: Any, when: int, share: float):
        self.compiled, self.when, self.share = compiled, when, share
        self.calls = itertools.count(1)
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        number, started = next(self.calls), time.perf_counter()
        result = self.compiled(*arguments)  # comes back at once; the device works on
        if number == self.when:
            time.sleep(self.share * self.seconds)
            die()
        jax.block_until_ready(result)
        self.seconds = time.perf_counter() - started
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)


def in_step(when: int, share: float) -> None:
    original = Trainer.compiled.func

    def compiled(trainer: Trainer) -> Any:
        whole = original(trainer)
        return whole._replace(step=Step(whole.step, when, share))

    Trainer.compiled.func = compiled


def in_the_middle_of_a_removal(when: int) -> None:
    original = folder.shutil.rmtree

    def remove(path: Path, *arguments: Any, **options: Any) -> None:
        if str(path).endswith(".deleting") and Path(path).exists():
            for file in sorted(file for file in Path(path).rglob("*") if file.is_file())[::2]:
                file.unlink()
            die()
        original(path, *arguments, **options)

    folder.shutil.rmtree = remove
    del when  # the first one


def while_arrays_are_written(when: int) -> None:
    original, calls = writer.CheckpointWriter._finish, itertools.count(1)

    def finish(*arguments: Any) -> None:
        if next(calls) == when:
            time.sleep(0.01)  # Orbax has threads of its own
            die()
        original(*arguments)

    writer.CheckpointWriter._finish = finish


PHASES: dict[str, Callable[[int], None]] = {
    "fetch": lambda when: before(BatchLayout, "place", when),
    "forward": lambda when: in_step(when, 0.2),
    "update": lambda when: in_step(when, 0.9),
    "snapshot": lambda when: after(ocp.StandardCheckpointHandler, "async_save", when),
    "write": while_arrays_are_written,
    "seal": lambda when: before(writer, "write_seal", when),
    "commit": lambda when: after(writer, "write_seal", when),
    "prune": in_the_middle_of_a_removal,
}

if __name__ == "__main__":
    PHASES[sys.argv[1]](int(sys.argv[2]))
    del sys.argv[1:3]
    main()
