"""A bar on the terminal for what takes long."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Count(Protocol):
    """Tells a bar that so many more are done."""

    def __call__(self, number: int = 1) -> None: ...


@contextmanager
def bar(title: str, total: int) -> Iterator[Count]:
    """Show a bar on standard error while inside; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def count(number: int = 1) -> None:
            progress.advance(task, number)

        yield count
