"""A build's progress on a terminal: files, MB, tokens a second, time left. Elsewhere nothing is shown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from looplm.data.build import report


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[report.Progress], None]]:
    """Give the callback for `build_dataset`."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding", total=None, line="")

        def show(state: report.Progress) -> None:
            bar.update(
                task, description=state.stage, total=state.total_bytes, completed=state.num_bytes, line=line(state)
            )

        yield show


def line(state: report.Progress) -> str:
    """Return e.g. `3/12 files, 41/160 MB, 1.2 M tokens/s, 1:03 left`."""
    if state.stage == "writing":
        return f"{state.new_tokens / 1e6:.1f} of {state.num_tokens / 1e6:.1f} M tokens"
    rate = state.new_tokens / max(state.seconds, 1e-9)
    # What an earlier start had done took no time in this one.
    left_s = (state.total_bytes - state.num_bytes) * state.seconds / max(state.new_bytes, 1)
    time_left = f", {int(left_s) // 3600}:{int(left_s) // 60 % 60:02d}:{int(left_s) % 60:02d} left"
    return (
        f"{state.num_files}/{state.total_files} files, {state.num_bytes / 1e6:.0f}/{state.total_bytes / 1e6:.0f} MB, "
        f"{rate / 1e6:.2f} M tokens/s{time_left * bool(state.new_bytes)}"
    )
