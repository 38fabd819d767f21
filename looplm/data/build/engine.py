"""What makes parts: this process, one after another, or the tasks of a Ray cluster, a part each.

The tasks are those of any other machine: they see the input and the folder of parts, and share nothing else. Ray starts
the task of a lost process or node again (`max_retries`), and it goes on from what is there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from looplm.data.build.part import Part, PartReport, build_part
from looplm.data.build.plan import Group
from looplm.data.build.report import Progress
from looplm.data.build.request import Request
from looplm.data.remote import is_remote
from looplm.errors import UserError, warn

ENGINES = ("local", "ray")
MAX_RETRIES = 20


def check_engine(engine: str, parts: Sequence[Part] | None) -> None:
    """Raise UserError unless there is such an engine, and something for it to do."""
    if engine not in ENGINES:
        raise UserError(f"--engine {engine} is not known; use {' or '.join(ENGINES)}")
    if engine != "local":
        if parts is None:
            raise UserError(f"--engine {engine} makes parts; say which, e.g. all of 64 with --part 1-64/64")
        _ray()


def make_parts(
    request: Request,
    parts: Sequence[Part],
    where: str,
    *,
    engine: str = "local",
    num_workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[PartReport]:
    """Make parts in the folder `where`; yield each when it is there.

    `num_workers` are the processes of a part: on this machine by default those of `build_part`, in Ray one, and a task
    asks for as many CPUs. The first part that fails ends all; what was done is kept. Raises what `build_part` raises.
    """
    if engine == "local":
        for part in parts:
            yield build_part(request, part, where, num_workers, progress)
    else:
        yield from _ray_parts(request, parts, where, num_workers or 1)


def _ray_parts(request: Request, parts: Sequence[Part], where: str, num_workers: int) -> Iterator[PartReport]:
    ray = _ray()
    # Workers have folders of their own, and machines too.
    groups = tuple(_anywhere(group) for group in request.groups)
    where = where if is_remote(where) else str(Path(where).absolute())
    # A cluster that RAY_ADDRESS names or that runs on this machine, else one of this process alone.
    ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    try:
        if not any(node["Resources"].get("CPU", 0) >= num_workers for node in ray.nodes()):
            warn(f"no node of the Ray cluster has {num_workers} CPUs for a part; it waits until there is one")
        task = ray.remote(num_cpus=num_workers, max_retries=MAX_RETRIES)(build_part)
        shared = ray.put(replace(request, groups=groups))
        waiting = [task.remote(shared, part, where, num_workers) for part in parts]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        ray.shutdown()


def _anywhere(group: Group) -> Group:
    return replace(group, files=tuple(replace(file, path=file.path.absolute()) for file in group.files))


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs the `ray` library; run `pip install looplm[ray]`") from None
    return ray
