"""What happens around the steps of a run: their numbers are written, and held-out data is scored."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.data.held_out import HeldOut
from looplm.errors import warn
from looplm.eval.depth_sweep import CutOff, depth_sweep
from looplm.eval.score import Scorer
from looplm.hardware import find as find_device
from looplm.metrics.events import EVALUATION, Events
from looplm.metrics.loads import LoadLog
from looplm.metrics.sinks import Sink
from looplm.metrics.step import StepOutput
from looplm.metrics.sweep import Sweep
from looplm.model.functional import Params
from looplm.optim.ema import ema_params
from looplm.train.corruption import Digests
from looplm.train.flops import StepFlops
from looplm.train.memory_use import memory_use
from looplm.train.metrics import readable
from looplm.train.program import Program
from looplm.train.state import TrainState


class Dispatched(NamedTuple):
    """A step that the device is working on."""

    step: int
    output: StepOutput
    drawn: np.ndarray
    data: Mapping[str, float]
    """How long its batch was waited for, and what has been read by then."""
    digests: Digests | None
    """Of the steps in which devices are checked."""


class StepLog:
    """Writes the numbers of one step after the other."""

    def __init__(
        self, program: Program, flops: StepFlops, sinks: Sequence[Sink], loads: LoadLog | None, extra: dict[str, float]
    ):
        self.program, self.flops, self.sinks, self.loads = program, flops, sinks, loads
        self.extra = extra
        """For the next line only."""
        self.restart_clock()

    def restart_clock(self) -> None:
        """What was done since the last line is no part of the next step's time."""
        self._since = time.perf_counter()

    def write(self, dispatched: Dispatched) -> dict[str, float]:
        """Waits for a dispatched step and writes its numbers, which it returns."""
        output = jax.device_get(dispatched.output)
        metrics = readable(output, dispatched.drawn)
        done = time.perf_counter()
        seconds = done - self._since
        metrics |= {
            "perf/step_s": seconds,
            "perf/tokens_per_s": metrics["train/tokens"] / seconds,
            **efficiency(self.program, self.flops, dispatched.drawn, seconds),
            **memory_use(jax.local_devices()),
            **dispatched.data,
            **self.extra,
        }
        self._since, self.extra = done, {}
        for sink in self.sinks:
            sink.write(dispatched.step, metrics)
        if self.loads is not None:
            self.loads.write(dispatched.step, output.routers, dispatched.drawn)
        return metrics


def efficiency(program: Program, flops: StepFlops, drawn: np.ndarray, seconds: float) -> dict[str, float]:
    """Model FLOP/s of a step: the work that is needed, so what is computed twice does not count."""
    detached, trained = np.atleast_2d(drawn).mean(axis=0)
    devices = program.mesh.devices
    rate = flops.at(detached, trained / program.depths.window).model / seconds / devices.size
    metrics = {"perf/tflops_per_device": float(rate) / 1e12}
    device = find_device(devices.flat[0].device_kind)
    if device is not None and program.dtype == jnp.bfloat16:  # the peak is one of bfloat16
        metrics["perf/mfu"] = float(rate) / device.peak_flops
    return metrics


class Evaluation:
    """Scores held-out data at all depths while a run goes on; also the averaged weights, if there are."""

    def __init__(self, program: Program, validation: HeldOut | None, folder: Path, events: Events):
        self.program, self.run, self.validation, self.folder = program, program.run, validation, folder
        self.events = events

    def is_due(self, step: int) -> bool:
        every = self.run.eval.every_steps
        return self.validation is not None and every > 0 and (step % every == 0 or step == self.run.num_steps)

    def is_owed(self, step: int) -> bool:
        """Whether the evaluation of this step was cut off, and not made up since."""
        told = self.events.read(EVALUATION)
        return bool(told) and told[-1]["step"] == step and told[-1]["cut_off"] and self.is_due(step)

    def __call__(
        self, state: TrainState, step: int, sinks: Sequence[Sink], stops: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Depth sweep into metrics, which are returned, and WORKDIR/eval. None when `stops` cut it off: then it is owed
        by the run's next start."""
        was_owed = self.is_owed(step)
        try:
            metrics = self._score(state, step, sinks, stops)
        except CutOff:
            self.events.note(EVALUATION, step=step, cut_off=True)
            return None
        if was_owed:
            self.events.note(EVALUATION, step=step, cut_off=False)
        return metrics

    def _score(
        self, state: TrainState, step: int, sinks: Sequence[Sink], stops: Callable[[], bool]
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        sets = [(state.params, "eval/")]
        if (averaged := ema_params(state.opt_state)) is not None:
            sets.append((self.program.learning.put(averaged, state.params), "eval/ema_"))
        for params, prefix in sets:
            result = self.sweep(params, step, ema=params is not state.params, stops=stops)
            if jax.process_index() == 0:
                try:
                    result.save(self.folder)
                except OSError as error:
                    warn(f"{self.folder} cannot be written ({error.strerror}); this evaluation is in the metrics only")
            metrics |= {f"{prefix}loss_depth_{row.depth}": row.loss for row in result.rows}
            bits = {row.depth: row.bits_per_byte for row in result.rows if row.bits_per_byte is not None}
            metrics |= {f"{prefix}bpb_depth_{depth}": value for depth, value in bits.items()}
        for sink in sinks:
            sink.write(step, metrics)
        return metrics

    def sweep(self, params: Params, step: int, *, ema: bool, stops: Callable[[], bool]) -> Sweep:
        assert self.validation is not None, "is_due"
        run = self.run
        return depth_sweep(
            self.scorer,
            params,
            self.validation,
            batch_size=self.batch_size,
            depths=self.depths,
            trained_depth=run.loop.num_loops,
            step=step,
            ema=ema,
            max_batches=run.eval.max_batches,
            stops=stops,
        )

    def check_labels(self) -> None:
        """Raises UserError when there is held-out data and nothing of it can be scored."""
        if self.validation is not None:
            self.validation.check_labels(batch_size=self.batch_size, max_batches=self.run.eval.max_batches)

    @property
    def batch_size(self) -> int:
        """Sequences in one forward pass."""
        return self.program.batch.batch_size // self.run.data.accumulation_steps

    @property
    def depths(self) -> tuple[int, ...]:
        return self.run.eval.depths or tuple(range(1, self.run.loop.num_loops + 1))

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.program.lm, self.program.mesh, max(self.depths))
