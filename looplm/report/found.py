"""What a run directory holds, as far as it is there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from looplm.config.load import from_json
from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.metrics import answers, exit_sweep, first_states, kv_loss, restarts
from looplm.metrics.answers import Answers
from looplm.metrics.events import NOTE, read_events
from looplm.metrics.exit_sweep import ExitSweep
from looplm.metrics.first_states import FirstStates
from looplm.metrics.kv_loss import KVLosses
from looplm.metrics.loads import read_loads
from looplm.metrics.restarts import Restarts
from looplm.metrics.sinks import read_metrics
from looplm.metrics.stored import Measured
from looplm.metrics.sweep import Sweep, read_sweeps
from looplm.metrics.task_results import TaskNumber, read_task_results
from looplm.metrics.timing import TIME, whole
from looplm.report.history import History

M = TypeVar("M", bound=Measured)


@dataclass(frozen=True)
class Found:
    """The numbers of a run."""

    name: str
    run: Run
    history: History
    sweeps: Sequence[Sweep] = ()
    """By step; the last one is shown in full."""
    exits: ExitSweep | None = None
    kv: KVLosses | None = None
    first_states: FirstStates | None = None
    answers: Answers | None = None
    restarts: Restarts | None = None
    tasks: tuple[int, Sequence[TaskNumber]] = (0, ())
    """Step, and what the harness found there."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Where the wall-clock went, see `metrics.timing`."""
    loads: Sequence[Mapping[str, Any]] = ()
    """Of every expert, see `metrics.loads`."""
    notes: Sequence[Mapping[str, Any]] = ()
    """What was said about the run while it went on, events of the kind `note`."""

    @property
    def sweep(self) -> Sweep | None:
        """The latest sweep of all depths."""
        return self.sweeps[-1] if self.sweeps else None


def read(workdir: Path) -> Found:
    """Read a run directory. Raises UserError for one without metrics, and for broken files."""
    config, file, folder = workdir / "config.json", workdir / "metrics.jsonl", workdir / "eval"
    was_imported = not file.exists() and config.is_file() and not from_json(config).data.sources
    rows = [] if was_imported else read_metrics(file)
    sweeps = read_sweeps(folder)
    if not rows and not sweeps:
        raise UserError(
            f"{file} holds no step yet; wait for the first step of `looplm train`, or score the weights with "
            "`looplm eval`"
        )
    events = read_events(workdir / "events.jsonl")
    return Found(
        workdir.resolve().name,
        from_json(config),
        History(rows),
        sweeps,
        _latest(folder, exit_sweep.KIND, ExitSweep),
        _latest(folder, kv_loss.KIND, KVLosses),
        _latest(folder, first_states.KIND, FirstStates),
        _latest(folder, answers.KIND, Answers),
        _latest(folder, restarts.KIND, Restarts),
        read_task_results(folder),
        whole([event for event in events if event["kind"] == TIME]),
        read_loads(workdir / "experts.jsonl"),
        [event for event in events if event["kind"] == NOTE],
    )


def _latest(folder: Path, kind: str, record: type[M]) -> M | None:
    """Read KIND-<step>.json of the largest step: the weights themselves on the run's own data."""
    steps = [int(found[1]) for path in folder.glob(f"{kind}-*.json") if (found := _numbered(kind, path.name))]
    return record.read(folder / f"{kind}-{max(steps)}.json") if steps else None


def _numbered(kind: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(rf"{re.escape(kind)}-(\d+)\.json", name)
