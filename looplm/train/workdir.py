"""The run directory: whose it is, and what a resume may change."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from looplm.checkpoint.folder import linked_away
from looplm.checkpoint.folder import steps as checkpoint_steps
from looplm.config.load import changes, from_json, leaves, to_json
from looplm.config.schema import NoCarry, Run
from looplm.distributed.join import place_in_group
from looplm.errors import UserError
from looplm.train.lock import only_one

FREE_TO_CHANGE = (
    "model.feed_forward.backend", "model.prelude_feed_forward.backend", "model.coda_feed_forward.backend",
    "mesh.", "sharding.", "recipes", "loop.remat", "loop.unroll", "data.accumulation_steps", "data.prefetch_batches",
    "data.cache_dir", "data.cache_gb", "data.validation", "data.train.folder", "init_allow_keys", "init_resize",
    "optim.guard.", "checkpoint.", "eval.", "log.",
)  # fmt: skip
"""Where and how often, not what is computed: these may differ when a run is resumed."""

LEASE_S = 150.0
"""A server of NFS keeps the locks of a host that is gone for 90 s."""


def free_to_change(run: Run) -> tuple[str, ...]:
    """Settings that may differ when this run is resumed. Rows in work, and a memory, lie as the micro-batches did."""
    held = () if isinstance(run.carry, NoCarry) and not run.model.memory_length else ("data.accumulation_steps",)
    return tuple(key for key in FREE_TO_CHANGE if key not in held)


class Workdir:
    """WORKDIR/{config.json, official.json, the tokenizer, template.txt, {metrics,events,experts}.jsonl, checkpoints/,
    eval/, report.html, tensorboard/, profile/}."""

    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config.json"
        self.metrics = root / "metrics.jsonl"
        self.loads = root / "experts.jsonl"
        self.events = root / "events.jsonl"
        self.checkpoints = root / "checkpoints"
        self.eval = root / "eval"
        self.tensorboard = root / "tensorboard"
        self.profile = root / "profile"

    def check_ours(self, run: Run, batches_of: Callable[[int], int] = int, *, last_saved: int | None = None) -> None:
        """Raises UserError when the folder holds a run with another config, or its checkpoints are elsewhere; writes
        nothing. Where a dataset lies may change; whether it is the same one, `Saving` knows.

        Args:
            batches_of: how many batches have been read after so many steps; as many when left out.
            last_saved: the step of the last checkpoint that was saved here, if one was.
        """
        nearest = next(path for path in (self.root, *self.root.absolute().parents) if os.path.lexists(path))
        if not nearest.is_dir():
            if nearest.is_symlink():
                raise _leads_nowhere(nearest, "remove it")
            raise UserError(f"workdir {self.root} cannot be made: {nearest} is a file; give a folder")
        if (link := linked_away(self.checkpoints)) is not None:
            raise _leads_nowhere(link, "remove it to go on without what it led to")
        if os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise UserError(f"{self.checkpoints} is a file; move it away, checkpoints are kept in a folder")
        steps = checkpoint_steps(self.checkpoints)
        if not (trained := [step for step in steps if step]) and last_saved is not None:
            raise UserError(
                f"{self.checkpoints} holds no checkpoint, and step {last_saved} was saved there ({self.events}); bring "
                f"the checkpoints back (a disk that is not mounted?), or give another --workdir to begin anew"
            )
        if not trained:
            return  # whatever is there, nothing was trained: it may be claimed anew
        if not self.config.exists():
            raise UserError(
                f"workdir {self.root} holds checkpoints without a config.json; put back the one that is in every "
                f"checkpoint ({self.checkpoints}/<step>/config.json), or give another --workdir"
            )
        before = from_json(self.config)
        differing = changes(leaves(before), leaves(run))
        changed = {key: pair for key, pair in differing.items() if not key.startswith(free_to_change(before))}
        if isinstance(run.data.train, tuple) and isinstance(before.data.train, tuple):
            self._check_read(before, run, batches_of(steps[-1]))
            changed.pop("data.train", None)
        elif isinstance(run.data.train, str) and isinstance(before.data.train, str):
            changed.pop("data.train", None)
        if changed:
            told = ", ".join(f"{key}={wanted!r} (stored: {stored!r})" for key, (stored, wanted) in changed.items())
            remedy = "give another --workdir, or the stored values to resume"
            if run.num_steps > before.num_steps:
                remedy += (
                    f"; to train longer, give another --workdir and init_from={self.root}, which takes the weights "
                    "but not the optimizer's state"
                )
            raise UserError(f"workdir {self.root} holds a run with another config: {told}; {remedy}")

    def _check_read(self, before: Run, run: Run, batches: int) -> None:
        """Other weights are welcome from here on; what was read stays what it was."""
        if before.data.read_before(batches) != run.data.read_before(batches):
            raise UserError(
                f"workdir {self.root} has read {batches} batches, and data.train would have other examples in them; "
                f"keep its sources, and change a weight from here on as weight={{0: OLD, {batches}: NEW}} "
                f"(a new source: {{{batches}: NEW}})"
            )

    def moved(self, run: Run) -> Iterator[tuple[str, str, str]]:
        """Sources that a resumed run reads from another place: their names, where they were, and where they are."""
        if not checkpoint_steps(self.checkpoints):
            return
        before = {source.name: source.data for source in from_json(self.config).data.sources}
        for source in run.data.sources:
            old, new = before.get(source.name), source.data
            if isinstance(old, str) and isinstance(new, str) and old != new:
                yield source.name, old, new

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is there, be it damaged and set aside."""
        return any(os.path.lexists(self.checkpoints / name) for name in (f"{step}", f"{step}.damaged"))

    def check_claimed(self) -> None:
        """Raises UserError when another process has claimed the folder and this one does not see it."""
        if not self.config.exists():
            raise UserError(f"workdir {self.root} is not shared by all processes; give a folder that every host sees")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder; inside, it is this process's alone. In an elastic job whoever had it may be a host that was
        lost, which a server of files takes a while to believe. Raises UserError when it cannot be."""
        with ExitStack() as held:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                held.enter_context(only_one(self.root, LEASE_S if place_in_group() else 0.0))
            except OSError as error:
                raise self._unwritable(error) from error
            yield

    def claim(self, run: Run, files: dict[str, bytes]) -> None:
        """Writes the config, and the files by their names, each atomically: the tokenizer's, and the template.

        Raises UserError when it cannot.
        """
        try:
            for name, content in {self.config.name: to_json(run).encode(), **files}.items():
                temporary = self.root / f"{name}.tmp"
                temporary.write_bytes(content)
                os.replace(temporary, self.root / name)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend its permissions"
        return UserError(f"workdir {self.root} cannot be written: {error.strerror}; {remedy} or give another")


def _leads_nowhere(link: Path, otherwise: str) -> UserError:
    return UserError(f"{link} is a link to {os.readlink(link)}, which is not there; mount that disk or mend the link, "
                     f"or {otherwise}")  # fmt: skip
