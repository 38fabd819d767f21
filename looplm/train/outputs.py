"""Opens what the numbers of a run are written to. Only one process writes."""

import secrets

import jax
from rich.console import Console

from looplm.config.load import leaves
from looplm.config.schema import Run
from looplm.metrics.events import Events
from looplm.metrics.loads import LoadLog
from looplm.metrics.sinks import ConsoleSink, JsonlSink, Sink, TensorBoardSink, each_row
from looplm.metrics.timing import Timekeeper
from looplm.metrics.trackers import Tracked, open_trackers
from looplm.train.health import Health
from looplm.train.notes import Notes
from looplm.train.workdir import Workdir


def open_sinks(
    run: Run, workdir: Workdir, console: Console, timekeeper: Timekeeper, events: Events, said: Notes, first_step: int
) -> list[Sink]:
    """Open the sinks of a run that goes on after a step; the timekeeper learns how far it had come."""
    if jax.process_index() != 0:
        return []
    lines = JsonlSink(workdir.metrics, resume_step=first_step)
    timekeeper.reached = max(timekeeper.reached, lines.reached)
    sinks: list[Sink] = [
        lines,
        ConsoleSink(console, num_steps=run.num_steps, start_step=first_step, every_steps=run.log.every_steps),
    ]
    if run.log.tensorboard:
        sinks.append(TensorBoardSink(workdir.tensorboard, resume_step=first_step))
    if run.log.trackers:
        sinks += open_trackers(run.log.trackers, _tracked(run, workdir, events))
    return [*sinks, Health(run, said, each_row(workdir.metrics))]


def open_loads(run: Run, workdir: Workdir, first_step: int) -> LoadLog | None:
    """Open the file of experts' loads."""
    if jax.process_index() != 0:
        return None
    return LoadLog(
        workdir.loads, resume_step=first_step, every_steps=run.log.loads_every_steps, last_step=run.num_steps
    )


def _tracked(run: Run, workdir: Workdir, events: Events) -> Tracked:
    """What services are told of a run; they know it by a key that it keeps over restarts."""
    if before := events.read("tracked"):
        key = before[0]["key"]
    else:
        events.note("tracked", key=(key := secrets.token_hex(4)))
    return Tracked(run.log.project, key, workdir.root.resolve(), leaves(run))
