"""The trainer: set up, restore or create, then one step after the other.

Steps are counted from 1 in everything that is written: the line of step n, and the checkpoint n, describe the state
after n optimizer steps, and the batch that led there is the loader's batch n - 1.

The host never waits for the step it has just dispatched: it reads the metrics of the step before.
"""

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from looplm.checkpoint.manager import CheckpointManager
from looplm.config.schema import Run
from looplm.data.dataset import TokenDataset
from looplm.data.loader import train_loader
from looplm.distributed import wait_for_all
from looplm.eval.depth_sweep import depth_sweep
from looplm.eval.score import Scorer
from looplm.hardware import find as find_device
from looplm.metrics.flops import training_flops
from looplm.metrics.sinks import ConsoleSink, JsonlSink, Sink, TensorBoardSink
from looplm.metrics.sweep import Sweep
from looplm.model.functional import Params, compute_dtype
from looplm.model.parameter_table import parameter_table, totals
from looplm.optim.ema import ema_params
from looplm.sharding.mesh import build_mesh
from looplm.train.memory import memory_line, memory_of
from looplm.train.metrics import readable
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.step import Metrics
from looplm.train.workdir import Workdir


class Dispatched(NamedTuple):
    """A step that the device is working on."""

    step: int
    metrics: Metrics
    drawn: np.ndarray
    data_wait_s: float


class Compiled(NamedTuple):
    """The training step, and how long it took to compile."""

    step: jax.stages.Compiled
    seconds: float


class Trainer:
    """One run in one workdir. Everything that can be wrong with the request raises UserError in the constructor,
    before anything is written or computed."""

    def __init__(self, run: Run, workdir: Path, console: Console):
        self.run, self.workdir, self.console = run, Workdir(workdir), console
        self.dataset = TokenDataset.open(run.data.train)
        self.dataset.check_vocab(run.model.vocab_size)
        self.validation = TokenDataset.open(run.data.validation) if run.data.validation else None
        if self.validation:
            self.validation.check_tokenizer(self.dataset.tokenizer() if self.dataset.has_tokenizer else None)
        self.workdir.check_ours(run)
        self.program = Program(run, build_mesh(run.mesh))
        self.lm, self.mesh, self.batch = self.program.lm, self.program.mesh, self.program.batch
        self.loader(start_step=0)  # refuses a dataset that is shorter than a window

    def train(self) -> TrainState:
        """Trains from the newest checkpoint, or from the seed, to the last step."""
        if (padding := self.run.model.vocab_size - self.dataset.vocab_size) > self.dataset.vocab_size // 10:
            self.console.print(
                f"note: model.vocab_size={self.run.model.vocab_size} is {padding} above the {self.dataset.vocab_size} "
                "pieces of the tokenizer; every one costs time and memory"
            )
        if jax.process_index() == 0:
            self.workdir.claim(self.run, self.dataset.tokenizer().files if self.dataset.has_tokenizer else {})
        wait_for_all("the workdir is claimed")
        self.workdir.check_claimed()
        checkpoints = CheckpointManager(self.workdir.checkpoints, keep_last=self.run.checkpoint.keep_last)
        if (checkpoints.latest_step() or 0) < self.run.num_steps:
            self.console.print(f"{totals(parameter_table(self.lm, self.mesh), self.mesh)}; compiling")
            self.console.print(memory_line(memory_of(self.compiled.step), find_device(jax.devices()[0].device_kind)))
        state, first_step = self.restore_or_create(checkpoints)  # only now is anything allocated
        sinks = self.open_sinks(first_step)
        try:
            return self.run_steps(state, first_step, checkpoints, sinks)
        finally:
            checkpoints.close()
            for sink in sinks:
                sink.close()

    def run_steps(self, state: TrainState, done: int, checkpoints: CheckpointManager, sinks: list[Sink]) -> TrainState:
        if done >= self.run.num_steps:
            self.console.print(f"nothing to do: step {done} of {self.run.num_steps} is done")
            return state
        batches = self.loader(start_step=done)
        train_step = self.compiled.step
        extra = {"perf/compile_s": self.compiled.seconds, "model/num_parameters": self.lm.num_params}

        before: Dispatched | None = None
        clock = time.perf_counter()
        for step in range(done + 1, self.run.num_steps + 1):
            waited = time.perf_counter()
            drawn = self.program.depths.draw(step - 1)
            batch = self.batch.place(next(batches), drawn)
            waited = time.perf_counter() - waited
            state, metrics = train_step(state, batch, self.batch.place_drawn(drawn))
            if before is not None:
                clock = self.log(before, clock, extra, sinks)
                extra = {}
            before = Dispatched(step, metrics, drawn, waited)

            if (saves := self.is_save_due(step)) or self.is_eval_due(step):
                # What a checkpoint has behind it is written before it, so that a resume misses nothing.
                self.log(before, clock, extra, sinks)
                before, extra = None, {}
                if self.is_eval_due(step):
                    self.evaluate(state, step, sinks)
                if saves:
                    extra["ckpt/blocked_s"] = self.save(checkpoints, step, state)
                clock = time.perf_counter()
        return state

    # --- set-up ------------------------------------------------------------------------------------------------------

    @cached_property
    def compiled(self) -> Compiled:
        self.console.print(f"{self.lm.num_params:,} parameters on {self.mesh.size} devices; compiling")
        started = time.perf_counter()
        step = self.program.lower().compile()
        return Compiled(step, time.perf_counter() - started)

    def restore_or_create(self, checkpoints: CheckpointManager) -> tuple[TrainState, int]:
        """Returns the state and how many steps it has behind it."""
        step = checkpoints.latest_step()
        if step is None:
            return self.program.create_state(), 0
        abstract = self.program.abstract_state()
        params, opt_state = checkpoints.restore(step, abstract.params, abstract.opt_state)
        self.console.print(f"resuming {self.workdir.root} after step {step}")
        return TrainState(jax.device_put(np.int32(step), abstract.step.sharding), params, opt_state), step

    def open_sinks(self, first_step: int) -> list[Sink]:
        """Only one process writes."""
        if jax.process_index() != 0:
            return []
        run = self.run
        sinks: list[Sink] = [
            JsonlSink(self.workdir.metrics, resume_step=first_step),
            ConsoleSink(self.console, num_steps=run.num_steps, start_step=first_step, every_steps=run.log.every_steps),
        ]
        if run.log.tensorboard:
            sinks.append(TensorBoardSink(self.workdir.tensorboard, resume_step=first_step))
        return sinks

    def loader(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        data = self.run.data
        return train_loader(
            self.dataset,
            sequence_length=data.sequence_length,
            batch_size=self.batch.batch_size,
            seed=self.run.seed,
            start_step=start_step,
            host=self.batch.part,
            num_hosts=self.batch.num_parts,
            prefetch=data.prefetch_batches,
        )

    @property
    def eval_depths(self) -> tuple[int, ...]:
        return self.run.eval.depths or tuple(range(1, self.run.loop.num_loops + 1))

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.lm, self.mesh, max(self.eval_depths))

    # --- in the loop -------------------------------------------------------------------------------------------------

    def log(self, dispatched: Dispatched, clock: float, extra: dict[str, float], sinks: list[Sink]) -> float:
        """Waits for a dispatched step and writes its numbers. Returns the time at which it was done."""
        metrics = readable(jax.device_get(dispatched.metrics), dispatched.drawn)
        done = time.perf_counter()
        metrics |= {
            "perf/step_s": done - clock,
            "perf/tokens_per_s": metrics["train/tokens"] / (done - clock),
            **self.efficiency(dispatched.drawn, done - clock),
            "data/wait_s": dispatched.data_wait_s,
            **extra,
        }
        for sink in sinks:
            sink.write(dispatched.step, metrics)
        return done

    def efficiency(self, drawn: np.ndarray, seconds: float) -> dict[str, float]:
        """Model FLOP/s of a step: the work that is needed, so what is computed twice does not count."""
        run = self.run
        depths, counts = np.unique(np.atleast_2d(drawn), axis=0, return_counts=True)
        per_token = [
            training_flops(
                run.model,
                run.objective,
                sequence_length=run.data.sequence_length,
                num_loops=int(detached + trained),
                trained_loops=int(trained),
            ).total
            for detached, trained in depths
        ]
        rate = np.average(per_token, weights=counts) * run.data.batch_tokens / seconds / jax.device_count()
        metrics = {"perf/tflops_per_device": float(rate) / 1e12}
        device = find_device(jax.devices()[0].device_kind)
        if device is not None and compute_dtype(run.model) == jnp.bfloat16:  # the peak is one of bfloat16
            metrics["perf/mfu"] = float(rate) / device.peak_flops
        return metrics

    def save(self, checkpoints: CheckpointManager, step: int, state: TrainState) -> float:
        """Starts a save. Returns the seconds for which it held the training thread up."""
        started = time.perf_counter()
        meta = {"step": step, "run": self.run.model_dump(mode="json"), "data": self.dataset.fingerprint}
        checkpoints.save(step, state.params, state.opt_state, meta)
        return time.perf_counter() - started

    def is_save_due(self, step: int) -> bool:
        return step % self.run.checkpoint.every_steps == 0 or step == self.run.num_steps

    def is_eval_due(self, step: int) -> bool:
        every = self.run.eval.every_steps
        return self.validation is not None and every > 0 and (step % every == 0 or step == self.run.num_steps)

    def evaluate(self, state: TrainState, step: int, sinks: list[Sink]) -> None:
        """Depth sweep on held-out data, into metrics and WORKDIR/eval; also of the averaged weights, if there are."""
        metrics: dict[str, float] = {}
        for params, prefix in ((state.params, "eval/"), (ema_params(state.opt_state), "eval/ema_")):
            if params is None:
                continue
            result = self.sweep(params, step, ema=params is not state.params)
            if jax.process_index() == 0:
                result.save(self.workdir.eval)
            metrics |= {f"{prefix}loss_depth_{row.depth}": row.loss for row in result.rows}
            metrics |= {f"{prefix}bpb_depth_{row.depth}": row.bits_per_byte for row in result.rows}
        for sink in sinks:
            sink.write(step, metrics)

    def sweep(self, params: Params, step: int, *, ema: bool) -> Sweep:
        assert self.validation is not None, "is_eval_due"
        run = self.run
        return depth_sweep(
            self.scorer,
            params,
            self.validation,
            sequence_length=run.data.sequence_length,
            batch_size=self.batch.batch_size // run.data.accumulation_steps,
            depths=self.eval_depths,
            trained_depth=run.loop.num_loops,
            step=step,
            ema=ema,
            max_batches=run.eval.max_batches,
        )
