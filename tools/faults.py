"""Faults to train under: each function breaks one thing in this process. For `fault_drill.py` and the tests.

Nothing in looplm knows of them: they replace its functions. `patch` is setattr, or a test's that is undone.
"""

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax.numpy as jnp

from looplm.checkpoint.writer import CheckpointWriter
from looplm.train import corruption, feed, hooks, step

Patch = Callable[[Any, str, Any], None]


def spoil_steps(steps: Collection[int], *, factor: float = float("nan"), patch: Patch = setattr) -> None:
    """Loss and gradient of these steps (from 1) are multiplied with a factor, on the device."""
    _spoil(lambda micro_batch, number: jnp.isin(number + 1, jnp.array(sorted(steps))), factor, patch)


def spoil_batches(numbers: Collection[int], *, patch: Patch = setattr) -> None:
    """These batches (from 0) hold nothing but token 0, and such a batch gives NaN."""
    _spoil(lambda micro_batch, number: jnp.all(micro_batch.tokens == 0), float("nan"), patch)
    load = feed.train_loader

    def load_badly(*arguments: Any, start_step: int, **named: Any) -> Iterator[Any]:
        for number, rows in enumerate(load(*arguments, start_step=start_step, **named), start=start_step):
            yield rows | {"tokens": 0 * rows["tokens"]} if number in numbers else rows

    patch(feed, "train_loader", load_badly)


def _spoil(is_bad: Callable[[Any, Any], Any], factor: float, patch: Patch) -> None:
    build = step.build_loss

    def build_badly(*arguments: Any, **named: Any) -> Any:
        sums = build(*arguments, **named)

        def bad_sums(stand_ins: Any, whole: Any, micro_batch: Any, carry: Any, drawn: Any, number: Any) -> Any:
            objective, (result, carry) = sums(stand_ins, whole, micro_batch, carry, drawn, number)
            scale = jnp.where(is_bad(micro_batch, number), factor, 1.0)
            return objective * scale, (result._replace(loss=result.loss * scale), carry)

        return bad_sums

    for module in (step, corruption):
        patch(module, "build_loss", build_badly)


def when_written(number: int, act: Callable[[], object], *, patch: Patch = setattr) -> None:
    """Does something once, right after the line of a step was written."""
    write = hooks.StepLog.write

    def write_and_act(log: Any, dispatched: Any) -> Any:
        row = write(log, dispatched)
        if dispatched.step == number:
            act()
        return row

    patch(hooks.StepLog, "write", write_and_act)


def send(number: signal.Signals) -> Callable[[], None]:
    """A signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def hang() -> None:
    """As a collective that waits for a process which is gone, or storage that does not answer."""
    while True:
        time.sleep(3600)


def before_call(owner: Any, name: str, nth: int, act: Callable[[], object], *, patch: Patch = setattr) -> None:
    """Does something before the nth call (from 1) of a function."""
    original, calls = getattr(owner, name), iter(range(1, 1 << 60))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) == nth:
            act()
        return original(*arguments, **named)

    patch(owner, name, call)


def after_save(nth: int, act: Callable[[], object], *, patch: Patch = setattr) -> None:
    """Does something right after the nth save (from 1) was handed over, while it is written."""
    save, calls = CheckpointWriter.save, iter(range(1, 1 << 60))

    def save_and_act(*arguments: Any, **named: Any) -> Any:
        result = save(*arguments, **named)
        if next(calls) == nth:
            act()
        return result

    patch(CheckpointWriter, "save", save_and_act)
