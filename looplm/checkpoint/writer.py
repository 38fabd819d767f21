"""Saves checkpoints behind a run: snapshot on the training thread, everything else on a thread of its own.

A checkpoint is written by Orbax beside its place, its files are read back and digested, the seal is written, and only
then does it get its name. Whatever goes wrong on the way leaves the checkpoints that are there as they are, and the run
goes on: the next save is the next try.
"""

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from looplm.checkpoint import folder as names
from looplm.checkpoint.digest import Digest, Trees, as_text, digests, leaves_of
from looplm.checkpoint.reader import first_line, to_stderr
from looplm.checkpoint.retention import to_remove
from looplm.checkpoint.seal import (
    CONFIG_FILE,
    Damaged,
    Seal,
    StoredArray,
    StoredFile,
    digest_file,
    list_files,
    read_seal,
    write_seal,
)
from looplm.config.schema import Checkpoint
from looplm.data.folder import sync_folder
from looplm.distributed.exchange import first_of_all, publish, receive
from looplm.errors import UserError

PATIENCE_S = 30.0
"""How long a save that is due waits for the one before it; then it is left out."""
SWEEPS, SWEEP_S = 50, 0.1
"""How often, and after how many seconds, what a failed save left is removed again while more comes."""
AWAY = 5
"""How often in a row it has to be away."""
SAVES = itertools.count(1)
"""Of this process: names what the processes tell each other about a save."""
TIMEOUT_S = 1200
"""After which processes that wait for each other to finish a save give it up."""


class Facts(NamedTuple):
    """What every checkpoint of a run holds beside its arrays."""

    config: str
    """config.json."""
    seed: int
    data: str
    """Fingerprint of the dataset."""


class CheckpointWriter:
    """One save at a time. With several processes all of them must make the same calls; process 0 seals and prunes."""

    def __init__(
        self,
        folder: Path,
        config: Checkpoint,
        facts: Facts,
        abstract: Trees,
        *,
        digest: Digest = digests,
        best_metric: str = "",
        protected: int | None = None,
        next_one: Callable[[int], str] = lambda step: "training goes on, the next save is the next try",
        saved: Callable[[int], None] = lambda step: None,
        report: Callable[[str], None] = to_stderr,
    ):
        """Args:
        abstract: the trees that will be saved.
        digest: `digests`, or the same compiled for the leaves of these trees, by item and name.
        best_metric: what `keep_best` goes by.
        protected: a step that was read back and found right, and stays.
        next_one: says what comes after a save that failed, for messages.
        saved: called with the step of every checkpoint once it is one, by process 0, on another thread.
        """
        self.folder, self.config, self.facts, self.report = folder, config, facts, report
        self.best_metric, self.protected, self.next_one, self.saved = best_metric, protected, next_one, saved
        self.last_saved: int | None = protected
        self._failure = ""
        """Why the newest save failed; empty when it did not."""
        self._leaves = leaves_of(abstract)
        self._digest = digest
        self._num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in self._leaves.values())
        self._thread: threading.Thread | None = None
        self._started = 0.0
        self._saved = self._seals_on_disk()
        absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs what is reported here, with its stack
        handlers = {item: ocp.StandardCheckpointHandler() for item in abstract}
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**handlers), async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT_S)
        )

    def save(
        self, step: int, trees: Trees, metrics: Mapping[str, float] | None = None, *, patience_s: float | None = None
    ) -> bool:
        """Takes a snapshot and returns; the rest goes on behind. False, after a line of warning, when it could not
        even begin.

        Args:
            patience_s: how long to wait for the save before; PATIENCE_S when left out.
        """
        if obstacle := first_of_all(self._obstacle(step, PATIENCE_S if patience_s is None else patience_s)):
            self._fail(step, obstacle)
            return False
        self._failure, self._started, number = "", time.monotonic(), next(SAVES)
        digest = self._digest(list(leaves_of(trees).values()))  # of what is in memory now, before anything is copied
        path = names.writing(self.folder.absolute(), step)
        args = ocp.args.Composite(**{item: ocp.args.StandardSave(tree) for item, tree in trees.items()})
        try:
            self._orbax.save(path, args=args, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            self._fail(step, first_line(error))
            return False
        what = (step, number, digest, dict(metrics or {}))
        self._thread = threading.Thread(target=self._finish, args=what, name="looplm-checkpoint", daemon=True)
        self._thread.start()
        return True

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def require(self, step: int) -> None:
        """Waits, and raises UserError unless the state after `step` is saved."""
        self.wait()
        reason = self._failure or ("" if self.last_saved == step else "it was left out")
        if reason := first_of_all(reason if jax.process_index() == 0 or self._failure else ""):
            kept = f"the newest that is saved is {self.last_saved}" if self.last_saved is not None else "none is saved"
            raise UserError(f"checkpoint {step} in {self.folder} could not be saved: {reason}; {kept}; mend that and "
                            "give the same command again")  # fmt: skip

    def close(self) -> None:
        """Waits; raises nothing."""
        self.wait()
        self._orbax.close()

    # --- on the training thread --------------------------------------------------------------------------------------

    def _obstacle(self, step: int, patience_s: float) -> str:
        """Why a save cannot begin; empty when it can."""
        if self._thread is not None:
            self._thread.join(patience_s)
            if self._thread.is_alive():
                return f"the one before is still being written, {time.monotonic() - self._started:.0f} s by now"
            self._thread = None
        if jax.process_index() != 0:
            return ""
        if os.path.lexists(path := self.folder / str(step)):
            return f"{path} is there already"  # a copy or a link that somebody has made: not this class's to replace
        self._sweep(1)  # what came after the sweep of a failed save would take its place on the disk
        return names.refusal(self.folder, self._num_bytes)

    def _fail(self, step: int, reason: str) -> None:
        self._failure = reason
        self.report(f"checkpoint {step} was not saved: {reason}; {self.next_one(step)}")

    def _seals_on_disk(self) -> dict[int, dict[str, float]]:
        """Evaluation metrics by step. What has no seal is not this class's to remove, and neither is a link: whoever
        moved the checkpoint meant to keep it."""
        found = {}
        for step in names.steps(self.folder):
            if (path := self.folder / str(step)).is_symlink():
                continue
            try:
                found[step] = read_seal(path, step).metrics
            except (Damaged, UserError):
                continue
        return found

    # --- behind ------------------------------------------------------------------------------------------------------

    def _finish(self, step: int, number: int, digest: jax.Array, metrics: dict[str, float]) -> None:
        try:
            self._orbax.wait_until_finished()
            self._commit(step, number, np.asarray(digest), metrics)
        except Exception as error:  # whatever a disk or a library comes up with
            self._fail(step, first_line(error))
            if jax.process_index() == 0:
                self._sweep(SWEEPS)
            return
        if jax.process_index() == 0:
            self._prune()

    def _sweep(self, tries: int) -> None:
        """Removes what a failed save has left. Orbax's threads may go on writing to it for a moment, and make what is
        gone anew: it has to be away several times in a row."""
        away = 0
        with suppress(OSError):  # the folder itself may be gone
            for number in range(tries):
                if number:
                    time.sleep(SWEEP_S)
                left = names.unfinished(self.folder)
                for name in left:
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                away = 0 if left else away + 1
                if away == AWAY:
                    return

    def _commit(self, step: int, number: int, digest: np.ndarray, metrics: dict[str, float]) -> None:
        written = names.writing(self.folder, step)
        files = {name: digest_file(written, name) for name in list_files(written)[_share()]}
        key = f"looplm/seal/{number}"
        if jax.process_index() != 0:
            publish(f"{key}/{jax.process_index()}", _pack(files))
            self.last_saved = step
            return
        for index in range(1, jax.process_count()):
            files |= _unpack(receive(f"{key}/{index}", TIMEOUT_S))
        with (written / CONFIG_FILE).open("w") as file:
            file.write(self.facts.config)
            file.flush()
            os.fsync(file.fileno())
        # What another host does not see yet, this one reads.
        files |= {name: digest_file(written, name) for name in list_files(written) if name not in files}
        arrays: dict[str, dict[str, StoredArray]] = {}
        for (item, name), words in zip(self._leaves, digest, strict=True):
            leaf = self._leaves[item, name]
            stored = StoredArray(shape=leaf.shape, dtype=str(leaf.dtype), digest=as_text(words))
            arrays.setdefault(item, {})[name] = stored
        seal = Seal(
            step=step,
            seed=self.facts.seed,
            data=self.facts.data,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
            arrays=arrays,
            files=files,
        )
        write_seal(written, seal)
        os.rename(written, self.folder / str(step))
        sync_folder(self.folder)
        self._saved[step] = seal.metrics
        self.last_saved = step
        self.saved(step)

    def _prune(self) -> None:
        for step in to_remove(self._saved, self.config, self.best_metric, self.protected):
            try:
                if not (self.folder / str(step)).is_symlink():  # moved since it was saved
                    names.remove(self.folder, str(step))
            except OSError as error:
                self.report(f"checkpoint {step} could not be removed: {error.strerror}")
            self._saved.pop(step)


def _share() -> slice:
    return slice(jax.process_index(), None, jax.process_count())


def _pack(files: Mapping[str, StoredFile]) -> str:
    return "\n".join(f"{file.size} {file.xxh128} {name}" for name, file in files.items())


def _unpack(text: str) -> dict[str, StoredFile]:
    lines = (line.split(" ", 2) for line in text.splitlines())
    return {name: StoredFile(size=int(size), xxh128=digest) for size, digest, name in lines}
