"""Where measured numbers go: `metrics.jsonl`, TensorBoard and the console; and how the file is read back.

Sinks get Python or numpy scalars, never arrays on a device. An absent name means "not measured". A run that resumes
from a checkpoint runs some steps again, so every sink that keeps a history is told the step it resumes from.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from looplm.errors import UserError, warn

NON_FINITE = ("NaN", "Infinity", "-Infinity")
"""JSON has no such numbers: `metrics.jsonl` holds them as these strings, and `read_metrics` turns them back."""
EVAL_LOSS = re.compile(r"eval/loss_depth_(\d+)")
FIELDS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("train/loss", "loss {:.4f}".format),
    ("train/grad_norm", "grad_norm {:.2f}".format),
    ("optim/learning_rate", "lr {:.1e}".format),
    ("loop/num_loops", "loops {:g}".format),
    ("perf/tokens_per_s", lambda rate: f"{_compact(rate)} tokens/s"),
)
"""What a console line shows, in this order; a progress bar has room for less."""
FLUSH_S = 60
"""TensorBoard sees new steps after so long."""
BAR_FIELDS = ("train/loss", "perf/tokens_per_s")


class Sink(Protocol):
    """A place for measured numbers."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes what was measured at `step`; a step may come in several calls (training, then evaluation)."""

    def close(self) -> None:
        """Writes out what is left; may be called twice."""


class JsonlSink:
    """One JSON object a line, `step` first, each handed to the system at once: a killed run loses one line at most.

    Lines that a full disk does not take are kept in memory, and written before the next one.

    Opening drops the lines of steps after `resume_step` and a broken last line; a broken line before raises UserError.

    lists: values may be lists of numbers, and lists of those.
    """

    def __init__(self, path: Path, *, resume_step: int, lists: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.reached = _drop_after(path, resume_step, lists) if path.exists() else 0
        """The last step that was ever written, dropped or not."""
        self._path, self._file = path, path.open("ab", buffering=0)
        self._pending, self._is_failing = b"", False

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        row = {"step": int(step)} | {name: _encode(value) for name, value in metrics.items()}
        self._pending += json.dumps(row, allow_nan=False).encode() + b"\n"
        self._try_to_write()

    def close(self) -> None:
        if not self._file.closed:
            self._try_to_write()
        self._file.close()

    def _try_to_write(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) or 0 :]
        except OSError as error:
            if not self._is_failing:
                warn(f"{self._path} cannot be written ({error.strerror}); its lines wait in memory until it can")
        self._is_failing = bool(self._pending)


def read_metrics(path: Path, *, lists: bool = False) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl` in file order, without a broken last line; `step` is an int.

    Raises UserError for a missing file or a broken line before the last, naming the line.
    """
    return list(each_row(path, lists=lists))


def each_row(path: Path, *, lists: bool = False) -> Iterator[dict[str, Any]]:
    """As `read_metrics`, one row after the other: a long run's do not fit into memory."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; `looplm train` writes it from the first step on")
    yield from (row for _, row in _rows(path, lists))


class TensorBoardSink:
    """Event files for TensorBoard; what an earlier process wrote after `resume_step` is hidden there."""

    def __init__(self, folder: Path, *, resume_step: int) -> None:
        # Here: protobuf is slow to import and the sink is optional. Not its SummaryWriter: the thread of that dies on a
        # full disk, and closing it then never returns.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event: Any = Event
        self._summary: Any = Summary
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{os.getpid()}"  # names hold only seconds and host: a quick restart would overwrite the file
        self._folder, self._writer = folder, EventsWriter(str(folder / "events"), suffix)
        self._flushed, self._is_failing, self._is_closed = time.monotonic(), False, False
        self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        # One event a step, not one a value.
        values = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._add(step, summary=self._summary(value=values))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with self._tolerant():
            self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        with self._tolerant():
            self._writer.write_event(self._event(step=step, wall_time=time.time(), **content))
            if time.monotonic() - self._flushed > FLUSH_S:
                self._flushed = time.monotonic()
                self._writer.flush()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Plots may have holes; a run does not end for them."""
        try:
            yield
        except OSError as error:
            if not self._is_failing:
                warn(f"{self._folder} cannot be written ({error.strerror}); some steps will be missing there")
            self._is_failing = True


class ConsoleSink:
    """A progress bar on a terminal; elsewhere a line for the first step, the last, and each multiple of `every_steps`.

    Evaluations get their line in both. `start_step` is the number of steps done before this process.
    """

    def __init__(self, console: Console, *, num_steps: int, start_step: int, every_steps: int) -> None:
        self._console, self._num_steps = console, num_steps
        self._start_step, self._every_steps = start_step, every_steps
        self._first: tuple[int, float] | None = None
        self._progress: Progress | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if any(name in metrics for name, _ in FIELDS):
            self._write_training(step, metrics)
        losses = {int(m[1]): value for name, value in metrics.items() if (m := EVAL_LOSS.fullmatch(name))}
        if losses:
            depths = "  ".join(f"{depth}: {losses[depth]:.4f}" for depth in sorted(losses))
            self._print(f"step {step}/{self._num_steps}  held-out loss by depth  {depths}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _write_training(self, step: int, metrics: Mapping[str, float]) -> None:
        is_due = self._first is None or step == self._num_steps or step % self._every_steps == 0
        left = self._time_left(step)
        if self._console.is_interactive:
            self._show(step, _line({name: metrics[name] for name in BAR_FIELDS if name in metrics}, left))
        elif is_due:
            self._print(f"step {step}/{self._num_steps}  {_line(metrics, left)}".rstrip())

    def _time_left(self, step: int) -> str:
        """From the mean pace since the first step, saves and evaluations included; the first step compiles."""
        now = time.monotonic()
        self._first = first_step, first_time = self._first or (step, now)
        if not first_step < step < self._num_steps:
            return ""
        return f"eta {_duration((now - first_time) / (step - first_step) * (self._num_steps - step))}"

    def _show(self, step: int, status: str) -> None:
        if self._progress is None:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[status]}"))
            self._progress = Progress(*columns, console=self._console)
            self._progress.add_task("train", total=self._num_steps, completed=self._start_step, status="")
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=step, status=status)

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)  # above the bar, if there is one


def _drop_after(path: Path, step: int, lists: bool) -> int:
    """Returns the largest step that the file held."""
    temporary, reached = path.with_name(f"{path.name}.tmp"), 0
    with temporary.open("wb") as file:
        for line, row in _rows(path, lists):
            reached = max(reached, int(row["step"]))
            if row["step"] <= step:
                file.write(line.rstrip(b"\n") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return reached


def _rows(path: Path, lists: bool) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields every line with its content; a broken line is an error only once another follows."""
    fault: UserError | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if fault is not None:
                raise fault
            try:
                yield line, _parse(line, lists)
            except ValueError as error:
                fault = UserError(f"{path} line {number} is no object of numbers ({error}); delete that line")


def _parse(line: bytes, lists: bool) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("it needs an integer `step`")
    for name, value in row.items():
        if lists and isinstance(value, list):
            continue
        if not isinstance(value, int | float) and not (isinstance(value, str) and value in NON_FINITE):
            raise ValueError(f"{name} is {value!r}")
    return {name: float(value) if isinstance(value, str) else value for name, value in row.items()}


def _encode(value: Any) -> Any:
    if isinstance(value, list):
        return value
    number = int(value) if isinstance(value, Integral) else float(value)
    return number if math.isfinite(number) else json.dumps(number)  # gives the names of NON_FINITE


def _line(metrics: Mapping[str, float], left: str) -> str:
    shown = {name: show(metrics[name]) for name, show in FIELDS if name in metrics}
    if metrics.get("train/tokens") == 0:
        shown["train/loss"] = "no label"
    return "  ".join([*shown.values(), left] if left else shown.values())


def _compact(value: float) -> str:
    size, suffix = next((u for u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= u[0]), (1, ""))
    return f"{value / size:.1f}{suffix}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{second:02d}s"
