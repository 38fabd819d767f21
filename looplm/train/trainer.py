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
import numpy as np
from rich.console import Console

from looplm.checkpoint.folder import clean
from looplm.config.schema import Run
from looplm.data.held_out import open_held_out
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.distributed import wait_for_all
from looplm.hardware import find as find_device
from looplm.metrics.sinks import ConsoleSink, JsonlSink, Sink, TensorBoardSink
from looplm.model.parameter_table import parameter_table, totals
from looplm.sharding.mesh import build_mesh
from looplm.train.hooks import Dispatched, Evaluation, StepLog
from looplm.train.initial import check_source
from looplm.train.memory import memory_line, memory_of
from looplm.train.program import Program
from looplm.train.saving import Saving
from looplm.train.state import TrainState
from looplm.train.workdir import Workdir


class Compiled(NamedTuple):
    """The training step, and how long it took to compile."""

    step: jax.stages.Compiled
    seconds: float


class Placed(NamedTuple):
    """A batch on the devices."""

    batch: dict[str, jax.Array]
    depth: jax.Array
    drawn: np.ndarray
    data: dict[str, float]


class Trainer:
    """One run in one workdir. Everything that can be wrong with the request raises UserError in the constructor,
    before anything is written or computed."""

    def __init__(self, run: Run, workdir: Path, console: Console):
        self.run, self.workdir, self.console = run, Workdir(workdir), console
        self.mixture = open_mixture(run.data, seed=run.seed)
        self.mixture.check(vocab_size=run.model.vocab_size, num_steps=run.num_steps)
        self.validation = open_held_out(run.data.validation, run.data) if run.data.validation else None
        if self.validation:
            self.validation.check_tokenizer(self.mixture.tokenizer)
        self.workdir.check_ours(run)
        self.program = Program(run, build_mesh(run.mesh))
        if run.init_from is not None:
            check_source(Path(run.init_from), self.program)
        self.lm, self.mesh, self.batch = self.program.lm, self.program.mesh, self.program.batch
        self.saving = Saving(self.program, self.mixture, self.workdir.checkpoints, self.console.print)
        self.evaluate = Evaluation(self.program, self.validation, self.workdir.eval)
        self.loader(start_step=0)  # refuses a batch that the hosts do not divide

    def train(self) -> TrainState:
        """Trains from the newest checkpoint, or from the seed, to the last step."""
        for note in self.notes():
            self.console.print(f"note: {note}", highlight=False)
        tokenizer = self.mixture.tokenizer
        if jax.process_index() == 0:
            self.workdir.claim(self.run, tokenizer.files if tokenizer else {})
            clean(self.workdir.checkpoints, self.console.print)
        wait_for_all("the workdir is claimed")
        self.workdir.check_claimed()
        if self.saving.newest() < self.run.num_steps:
            self.console.print(f"{totals(parameter_table(self.lm, self.mesh), self.mesh)}; compiling")
            self.console.print(memory_line(memory_of(self.compiled.step), find_device(jax.devices()[0].device_kind)))
        state, first_step = self.saving.restore_or_create()  # only now is anything allocated
        sinks = self.open_sinks(first_step)
        try:
            return self.run_steps(state, first_step, sinks)
        finally:
            self.saving.close()
            for sink in sinks:
                sink.close()

    def run_steps(self, state: TrainState, done: int, sinks: list[Sink]) -> TrainState:
        if done >= self.run.num_steps:
            self.console.print(f"nothing to do: step {done} of {self.run.num_steps} is done")
            return state
        batches = self.loader(start_step=done)
        train_step = self.compiled.step
        log = StepLog(
            self.run,
            sinks,
            {
                "perf/compile_s": self.compiled.seconds,
                "model/num_parameters": self.lm.num_params,
                "model/num_active_parameters": self.lm.num_active_params,
            },
        )
        before: Dispatched | None = None
        upcoming = self.place_next(batches, done + 1)
        for step in range(done + 1, self.run.num_steps + 1):
            placed = upcoming
            state, metrics = train_step(state, placed.batch, placed.depth)
            if step < self.run.num_steps:
                upcoming = self.place_next(batches, step + 1)  # travels while the devices work
            if before is not None:
                log.write(before)
            before = Dispatched(step, metrics, placed.drawn, placed.data)

            if (saves := self.saving.is_due(step)) or self.evaluate.is_due(step):
                # What a checkpoint has behind it is written before it, so that a resume misses nothing.
                log.write(before)
                before = None
                scores = self.evaluate(state, step, sinks) if self.evaluate.is_due(step) else {}
                if saves:
                    log.extra["ckpt/blocked_s"] = self.saving.save(step, state, scores)
                log.restart_clock()
        self.saving.require(self.run.num_steps)
        return state

    # --- set-up ------------------------------------------------------------------------------------------------------

    @cached_property
    def compiled(self) -> Compiled:
        self.console.print(f"{self.lm.num_params:,} parameters on {self.mesh.size} devices; compiling")
        started = time.perf_counter()
        step = self.program.lower().compile()
        return Compiled(step, time.perf_counter() - started)

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
            self.mixture,
            start_step=start_step,
            host=self.batch.part,
            num_hosts=self.batch.num_parts,
            prefetch=data.prefetch_batches,
        )

    def notes(self) -> Iterator[str]:
        """What is worth a thought before time is spent."""
        wanted, known = self.run.model.vocab_size, self.mixture.vocab_size
        if wanted - known > known // 10:
            yield (
                f"model.vocab_size={wanted} is {wanted - known} above the {known} tokens of the data; "
                "every one costs time and memory"
            )
        for part in self.mixture.parts:
            if part.windows.padding > 0.001:
                yield f"{part.windows.padding:.1%} of the positions of {part.name} are padding"

    # --- in the loop -------------------------------------------------------------------------------------------------

    def place_next(self, batches: Iterator[dict[str, np.ndarray]], step: int) -> Placed:
        """Takes the next batch from the loader and sends it to the devices."""
        started = time.perf_counter()
        drawn, rows = self.program.depths.draw(step - 1), next(batches)
        batch, depth = self.batch.place(rows, drawn), self.batch.place_drawn(drawn)
        data = {"data/wait_s": time.perf_counter() - started, **self.mixture.progress(step)}
        if self.mixture.padding:
            data["data/padding"] = float(np.mean(rows["segments"] == 0))
        return Placed(batch, depth, drawn, data)
