"""The trainer: set up, restore or create, then one step after the other.

Steps are counted from 1 in everything that is written: the line of step n, and the checkpoint n, describe the state
after n optimizer steps, and the batch that led there is the loader's batch n - 1.

The host never waits for the step it has just dispatched: it reads the metrics of the step before, while a thread reads
the next batch and sends it to the devices.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from looplm.checkpoint.folder import clean
from looplm.checkpoint.lineage import kept_files
from looplm.config.schema import Run
from looplm.data.held_out import open_held_out
from looplm.data.manifest import TEMPLATE_FILE
from looplm.data.mixture import open_mixture
from looplm.distributed import wait_for_all
from looplm.errors import Preempted, StoppedItself
from looplm.hardware import find as find_device
from looplm.metrics.events import Events
from looplm.metrics.loads import LoadLog
from looplm.metrics.sinks import Sink
from looplm.metrics.timing import Timekeeper, line
from looplm.metrics.trackers import check_trackers
from looplm.model.parameter_table import parameter_table, totals
from looplm.sharding.mesh import build_mesh
from looplm.train.corruption import CorruptionCheck, Digests
from looplm.train.depth import DepthSchedule
from looplm.train.feed import Feed, Placed, open_loader
from looplm.train.flops import StepFlops, step_flops
from looplm.train.hooks import Dispatched, Evaluation, StepLog
from looplm.train.memory import bytes_of, learning_line, memory_line, memory_of
from looplm.train.notes import Notes, notes_before
from looplm.train.outputs import open_loads, open_sinks
from looplm.train.preemption import Preemption
from looplm.train.profiling import Profile
from looplm.train.program import Program
from looplm.train.rewind import Batches
from looplm.train.saving import Saving, last_saved
from looplm.train.skipped import IN_A_ROW, UNLABELLED, SkippedUpdates, Spoiled, is_lone_spike, why
from looplm.train.stages import Stages, enter
from looplm.train.state import TrainState
from looplm.train.watchdog import Watchdog
from looplm.train.workdir import Workdir

NOTE_EVERY_S = 60.0
"""The times are written down at least so often: what a killed process did since its last note counts as down."""


class Compiled(NamedTuple):
    """The training step, what it costs, and how long it took to compile."""

    step: jax.stages.Compiled
    flops: StepFlops
    seconds: float


class Trainer:
    """One run in one workdir. Everything that can be wrong with the request raises UserError in the constructor,
    before anything is written or computed."""

    def __init__(
        self, run: Run, workdir: Path, console: Console, started: float | None = None, profile: str | None = None
    ):
        """started: time.time() from which the run's wall-clock counts; now when left out. profile: FIRST:LAST step."""
        self.run, self.workdir, self.console = run, Workdir(workdir), console
        self.when_set_up: Callable[[], None] = lambda: None
        """Called before the first step, and after every rewind."""
        self.profile = Profile(profile, self.workdir.profile)
        check_trackers(run.log.trackers)
        self.events = Events(self.workdir.events, writes=jax.process_index() == 0)
        self.started = time.time() if started is None else started
        self.mixture = open_mixture(run.data, seed=run.seed)
        self.look_back()
        self.validation = open_held_out(run.data.validation, run.data) if run.data.validation else None
        if self.validation:
            self.validation.check_tokenizer(self.mixture.tokenizer)
        self.program = Program(run, build_mesh(run.mesh))
        self.lm, self.mesh, self.batch = self.program.lm, self.program.mesh, self.program.batch
        self.saving = Saving(self.program, self.mixture, self.workdir, self.events, self.console.print, self.used_by)
        self.saving.check_data()
        if not self.saving.newest() and (source := self.saving.source()) is not None:
            from looplm.train.initial import check_source  # and with it what knows official models

            check_source(source, self.program, self.mixture.tokenizer)
        if self.program.teacher is not None:
            self.program.teacher.check_tokens(self.mixture.tokenizer)
        self.evaluate = Evaluation(self.program, self.validation, self.workdir.eval, self.events)
        if run.eval.every_steps:
            self.evaluate.check_labels()
        open_loader(self.program, self.mixture, start_step=0)  # refuses a batch that the hosts do not divide

    def train(self) -> TrainState:
        """Trains from the newest checkpoint, or from the seed, to the last step.

        Raises UserError when another job trains in the workdir or has made it another run's, Preempted when a signal
        asked for the end, StoppedItself when going on would be no use; what is saved is whole in every case.
        """
        with self.workdir.locked() if jax.process_index() == 0 else nullcontext():
            return self._train()

    def _train(self) -> TrainState:
        for note in self.notes():
            self.console.print(f"note: {note}", highlight=False)
        self.console.print(f"attention: {self.program.attention}", highlight=False, soft_wrap=True)
        # A job that held the lock until now has gone on from what the constructor saw.
        wait_for_all("the workdir is locked")
        self.look_back()
        tokenizer, template = self.mixture.tokenizer, next(iter(self.mixture.templates), None)
        if jax.process_index() == 0:
            files = {} if template is None else {TEMPLATE_FILE: template.encode()}
            files |= tokenizer.files if tokenizer else {}
            self.workdir.claim(self.run, files | kept_files(self.saving.source(), self.workdir.root, files))
            clean(self.workdir.checkpoints, self.console.print)
        wait_for_all("the workdir is claimed")
        self.workdir.check_claimed()
        with Preemption(self.mesh) as self.preemption:
            while True:
                try:
                    return self.go_on()
                except Spoiled as spoiled:
                    step, reason = spoiled.step, spoiled.reason
                # Outside of the handler, whose traceback holds the old state.
                self.rewind(step, reason)

    def go_on(self) -> TrainState:
        """Trains from the newest checkpoint to the last step, or until it has to stop."""
        self.time.switch("init")
        if self.saving.newest() < self.run.num_steps:
            with self.time.during("compile"):
                self.console.print(f"{totals(parameter_table(self.lm, self.mesh), self.mesh)}; compiling")
                if (learning := self.program.learning.size(self.lm.shapes)) < self.lm.num_params:
                    state = self.program.abstract_state().opt_state
                    self.console.print(learning_line(learning, self.lm.num_params, bytes_of(state)))
                memory = memory_of(self.compiled.step)
                self.console.print(memory_line(memory, find_device(jax.devices()[0].device_kind)))
                if self.run.optim.guard.sdc_check:
                    _ = self.corruption  # compiled now, and not again after a rewind
        with self.time.during("restore" if self.saving.newest() else "init"):
            state, first_step = self.saving.restore_or_create()  # only now is anything allocated
        owed = self.evaluate.is_owed(first_step)
        if first_step >= self.run.num_steps and not owed:
            self.console.print(f"nothing to do: step {first_step} of {self.run.num_steps} is done")
            self.saving.close()
            return state
        self.done = first_step
        sinks = open_sinks(self.run, self.workdir, self.console, self.time, self.events, self.said, first_step)
        loads = open_loads(self.run, self.workdir, first_step)
        self.when_set_up()
        try:
            if owed:
                self.make_up(state, first_step, sinks)
            if first_step >= self.run.num_steps:
                return state
            return self.run_steps(state, first_step, sinks, loads)
        finally:
            with self.time.during("checkpoint"):
                self.saving.close()
            self.profile.write()  # of a run that ends early
            for sink in (*sinks, *([loads] if loads else ())):
                sink.close()
            self.time.note(self.done)
            self.console.print(line(self.time.whole()))

    def run_steps(self, state: TrainState, done: int, sinks: list[Sink], loads: LoadLog | None) -> TrainState:
        log = StepLog(
            self.program,
            self.compiled.flops,
            sinks,
            loads,
            {
                "perf/compile_s": self.compiled.seconds,
                "model/num_parameters": self.lm.num_params,
                "model/num_active_parameters": self.lm.num_active_params,
            },
        )
        taught = self.program.taught(self.console.print)
        watchdog = Watchdog(self.workdir.root, self.note_hang)
        before: Dispatched | None = None
        saves = False
        with watchdog, Feed(self.program, self.mixture, self.batches, self.time, done + 1) as feed:
            for step in range(done + 1, self.run.num_steps + 1):
                self.time.begin(step)
                placed = feed.take(running=before)
                if (new := self.stages.begins(step)) is not None:
                    state = enter(state)
                    self.console.print(
                        f"step {step}: a stage begins, {new}; the guard learns its level", highlight=False
                    )
                digests = self.check_devices(state, placed, step)
                with self.profile.step(step):
                    state, output = self.compiled.step(state, placed.batch, placed.depth, *taught)
                watchdog.begin(step)
                self.preemption.ask()
                if step < self.run.num_steps:
                    feed.read_ahead(step + 1)
                if before is not None:
                    self.finish(before, log, watchdog)
                stops = self.preemption.agreed()
                before = Dispatched(step, output, placed.drawn, placed.data, digests)

                is_last, evaluates, due = (
                    step == self.run.num_steps,
                    self.evaluate.is_due(step),
                    self.saving.is_due(step),
                )
                saves = saves or due
                if not (saves or evaluates or stops):
                    continue
                # What a checkpoint has behind it is written before it, so that a resume misses nothing.
                row = self.finish(before, log, watchdog)
                before = None
                with watchdog.suspended():
                    scores, cut_off = {}, False
                    if evaluates:
                        with self.time.during("evaluation"):
                            found = self.evaluate(state, step, sinks, self.asked_to_stop)
                        scores, cut_off = found or {}, found is None
                        stops = stops or cut_off
                    # While updates are skipped the newest checkpoint stays the one to go back to.
                    if is_last or stops or (saves and not row[IN_A_ROW]):
                        saves = False
                        with self.time.during("checkpoint"):
                            log.extra["ckpt/blocked_s"] = self.saving.save(
                                step, state, scores, is_last=is_last or stops
                            )
                            if is_last or stops:
                                self.saving.require(step)
                log.restart_clock()
                if stops and (cut_off or not is_last):
                    self.events.note("preempted", step=step, reason=self.preemption.reason)
                    raise Preempted(f"{self.preemption.reason}: saved after step {step}; start again to go on")
        if unlabelled := int(row[UNLABELLED]):
            self.console.print(f"{unlabelled} of {step} steps had no label and changed nothing", highlight=False)
        if row[IN_A_ROW] and not is_lone_spike(row):
            raise StoppedItself(f"the last {row[IN_A_ROW]:.0f} updates of the run were not made: {why(row)}")
        return state

    # --- set-up ------------------------------------------------------------------------------------------------------

    def look_back(self) -> None:
        """Reads what earlier jobs have done in the workdir. Raises UserError when the run does not go on from that."""
        run = self.run
        self.time = Timekeeper(self.events, self.started)
        self.batches = Batches(self.events)
        self.check_data()
        self.last_saved = last_saved(self.events)
        self.workdir.check_ours(run, self.used_by, last_saved=self.last_saved)
        self.said = Notes(self.events, self.console)
        self.skipped = SkippedUpdates(run.optim.guard, self.mixture, self.batches, self.events, self.said, self.console)
        self.stages = Stages(self.mixture, self.batches, DepthSchedule(run))

    def notes(self) -> Iterator[str]:
        """What is worth a thought before time is spent."""
        return notes_before(self.run, self.mixture, self.workdir, self.last_saved, self.saving.newest())

    def used_by(self, step: int) -> int:
        """How many batches were read or passed over when a step is done; the order is read anew in `look_back`."""
        return self.batches.used_by(step)

    def check_data(self) -> None:
        """Raises UserError unless the data is the model's, and enough for all steps."""
        model = self.run.model
        steps = self.used_by(self.run.num_steps)
        self.mixture.check(vocab_size=model.vocab_size, num_steps=steps, id_rows=model.num_ids)

    @cached_property
    def compiled(self) -> Compiled:
        started = time.perf_counter()
        traced = self.program.trace()
        flops, step = step_flops(traced.jaxpr), traced.lower().compile()
        return Compiled(step, flops, time.perf_counter() - started)

    def asked_to_stop(self) -> bool:
        """Whether to stop, for all processes alike; every one of them must call it as often."""
        self.preemption.ask()
        return self.preemption.agreed()

    def make_up(self, state: TrainState, step: int, sinks: list[Sink]) -> None:
        """The evaluation that was cut off when the run was stopped after this step."""
        self.console.print(f"the evaluation of step {step} was cut off, and is made up")
        with self.time.during("evaluation"):
            if self.evaluate(state, step, sinks, self.asked_to_stop) is None:
                raise Preempted(f"{self.preemption.reason}: step {step} is saved; start again to go on")

    # --- in the loop -------------------------------------------------------------------------------------------------

    def finish(self, dispatched: Dispatched, log: StepLog, watchdog: Watchdog) -> dict[str, float]:
        """Waits for a dispatched step, writes its numbers and looks at them. Returns the numbers."""
        step = dispatched.step
        if step % self.run.log.every_steps == 0 or step == self.run.num_steps:
            log.extra |= self.time.metrics()
        row = log.write(dispatched)
        self.done = step
        if self.profile.is_over(step):
            with watchdog.suspended():
                self.profile.write()
        watchdog.beat(step)
        self.time.note(step, every_s=NOTE_EVERY_S)
        if dispatched.digests is not None and (faults := self.corruption.faults(dispatched.digests)):
            self.events.note("corrupted", step=step, faults=faults)
            raise StoppedItself(
                f"step {step}: silent data corruption: {'; '.join(faults)}; take the device out of service and start "
                f"again, the newest checkpoint is of step {self.saving.newest()}"
            )
        self.skipped.look(step, row)
        return row

    @cached_property
    def corruption(self) -> CorruptionCheck:
        return CorruptionCheck(self.program)

    def check_devices(self, state: TrainState, placed: Placed, step: int) -> Digests | None:
        every = self.run.optim.guard.sdc_check
        if not every or step % every:
            return None
        return self.corruption.start(state, placed.batch, placed.depth)

    def rewind(self, step: int, reason: str) -> None:
        """Passes over what was read since the newest checkpoint. Raises StoppedItself when that was done too often."""
        wait_for_all("everything is saved")
        allowed, done, newest = self.run.optim.guard.rewinds, self.batches.num_rewinds, self.saving.newest()
        if done >= allowed:
            raise StoppedItself(
                f"step {step}: {reason}; the newest checkpoint is of step {newest}, the batches are in "
                f"{self.workdir.events}. Go on past them with --set optim.guard.rewinds={done + 1}, or train anew with "
                f"a lower optim.learning_rate={self.run.optim.learning_rate:g}"
            )
        batches = self.batches.pass_over(newest, step)
        self.check_data()
        self.console.print(f"step {step}: {reason}; back to step {newest}, passing over {batches} batches")

    def note_hang(self, limit_s: float, stacks: str) -> None:
        self.time.note(self.done)
        self.events.note("hung", limit_s=round(limit_s, 1), stacks=stacks)
