"""Where a run goes on from, and when and what of it is saved."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np

from looplm.checkpoint.digest import Digest, Trees, compile_digests
from looplm.checkpoint.folder import set_aside
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.schedule import SaveSchedule
from looplm.checkpoint.seal import Damaged, Seal, read_seal
from looplm.checkpoint.writer import TIMEOUT_S, CheckpointWriter, Facts
from looplm.config.load import to_json
from looplm.data.mixture import Mixture
from looplm.distributed import wait_for_all
from looplm.errors import UserError
from looplm.metrics.events import Events
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.workdir import Workdir

SAVED = "saved"
"""The kind of event."""


class Saving:
    """The checkpoints of one run. With several processes all of them must make the same calls."""

    def __init__(
        self,
        program: Program,
        mixture: Mixture,
        workdir: Workdir,
        events: Events,
        report: Callable[[str], None],
        num_batches: Callable[[int], int],
    ):
        """num_batches: how many batches a run has read, or passed over, after so many steps."""
        self.num_batches, self.events = num_batches, events
        self.program, self.run, self.mixture, self.report = program, program.run, mixture, report
        self.folder = workdir.checkpoints
        self.schedule = SaveSchedule(self.run.checkpoint, self.run.num_steps)
        self._writer: CheckpointWriter | None = None

    def newest(self) -> int:
        """The newest step that may be gone on from; 0 when there is none."""
        return max(CheckpointReader(self.folder).steps(), default=0)

    def source(self) -> Path | None:
        """Where a run without a checkpoint of its own has its first weights from: `init_from`, or the model that was
        imported into its workdir, which is the checkpoint of step 0. Raises UserError where these are two."""
        imported, named = self.folder / "0", self.run.init_from
        if self.newest() or not imported.exists():
            return None if named is None else Path(named)
        if named is not None and Path(named).resolve() not in (imported.resolve(), self.folder.parent.resolve()):
            raise UserError(
                f"init_from={named}, and {self.folder.parent} holds the weights of an imported model (step 0); leave "
                "init_from out, or give another --workdir"
            )
        return imported

    def check_data(self) -> None:
        """Raises UserError when the newest checkpoint is of another dataset. One whose seal cannot be read is passed
        over later, with a reason."""
        if newest := self.newest():
            with suppress(Damaged):
                self._check_data(read_seal(self.folder / str(newest)))

    def restore_or_create(self) -> tuple[TrainState, int]:
        """Returns the state and how many steps it has behind it; from then on it can be saved.

        Raises UserError when there are checkpoints and none of them verifies, or they are of another dataset.
        """
        reader = CheckpointReader(self.folder, self.report)
        abstract = self.program.abstract_state()
        digest = compile_digests(trees_of(abstract))
        if not self.newest():
            state, step = self._create(), None
        else:
            restored = reader.restore(trees_of(abstract), accept=self._check_data, digest=digest)
            step = restored.seal.step
            if jax.process_index() == 0:
                for passed_over in restored.passed_over:
                    set_aside(self.folder, passed_over)
                    self.report(f"checkpoint {passed_over} is kept as {self.folder / f'{passed_over}.damaged'}")
            wait_for_all("damaged checkpoints are set aside")
            self.report(f"resuming {self.folder.parent} after step {step}")
            trees = restored.trees
            state = TrainState(
                jax.device_put(np.int32(step), abstract.step.sharding),
                trees["params"],
                trees["opt_state"],
                trees.get("carry"),
            )
        self._writer = self._open(trees_of(abstract), digest, step)
        return state, step or 0

    def is_due(self, step: int) -> bool:
        return self.schedule.is_due(step, jax.process_count())

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float], *, is_last: bool = False) -> float:
        """Starts a save. Returns the seconds for which it held the training thread up.

        Args:
            is_last: there is no next try, so it waits for the save before however long that takes.
        """
        assert self._writer is not None, "restore_or_create comes first"
        started = time.perf_counter()
        self._writer.save(step, trees_of(state), metrics, patience_s=TIMEOUT_S if is_last else None)
        self.schedule.saved()
        return time.perf_counter() - started

    def require(self, step: int) -> None:
        """Waits, and raises UserError unless the state after `step` is on the disk."""
        assert self._writer is not None, "restore_or_create comes first"
        self._writer.require(step)

    def close(self) -> None:
        """Waits until nothing is being written."""
        if self._writer is not None:
            self._writer.close()

    def _create(self) -> TrainState:
        if (source := self.source()) is None:
            return self.program.create_state()
        from looplm.train.initial import weights_from  # and with it what knows official models

        return self.program.state_of(weights_from(source, self.program, self.report))

    def _check_data(self, seal: Seal) -> None:
        if not self.mixture.is_what_was_read(seal.data, self.num_batches(seal.step)):
            raise UserError(
                f"checkpoint {seal.step} in {self.folder} was trained on another dataset than "
                f"{self.mixture.location} (manifest {seal.data[:12]}, here {self.mixture.fingerprint[:12]}); put that "
                "one back, or take the weights alone to a new run with init_from"
            )

    def _open(self, abstract: Trees, digest: Digest, step: int | None) -> CheckpointWriter:
        return CheckpointWriter(
            self.folder,
            self.run.checkpoint,
            Facts(to_json(self.run), self.run.seed, self.mixture.fingerprint),
            abstract,
            digest=digest,
            best_metric=self.run.checkpoint.best_metric or f"eval/loss_depth_{self.run.loop.num_loops}",
            protected=step,
            next_one=self.schedule.next_one,
            saved=lambda step: self.events.note(SAVED, step=step),
            report=self.report,
        )


def last_saved(events: Events) -> int | None:
    """The step of the last checkpoint that was saved, if one was: whether or not it is still there."""
    saves = events.read(SAVED)
    return int(saves[-1]["step"]) if saves else None


def trees_of(state: TrainState) -> Trees:
    """What a checkpoint holds of a state, by item."""
    trees = {"params": state.params, "opt_state": state.opt_state}
    return trees if state.carry is None else trees | {"carry": state.carry}
