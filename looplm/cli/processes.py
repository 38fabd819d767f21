"""A command that several processes may run together."""

from collections.abc import Iterator
from contextlib import contextmanager

from looplm.cli.output import console


@contextmanager
def several(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[None]:
    """Inside, this process is one of its job, and only the first one prints."""
    from looplm.distributed import joined

    with joined(coordinator, num_processes, process_id) as index:
        console.quiet = index != 0
        yield
