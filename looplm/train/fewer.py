"""An elastic run on fewer devices than it began with: the mesh, and of how many processes a group can be.

The global batch, and with it the learning rate and the order of the data, stay what the config says; every device takes
a larger share. The mesh is the one that a start on so many devices would have; only sizes that are written out and do
not fit give way.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from looplm.config.load import override
from looplm.config.schema import Mesh, Run
from looplm.distributed.elastic import watch_over
from looplm.errors import UserError
from looplm.sharding.mesh import check_fit, mesh_sizes
from looplm.sharding.rules import MESH_AXES
from looplm.train.machine import for_machine

GIVE_WAY = ("fsdp", "data", "replica")
"""Axes over which a batch is split and a model need not be. The first keeps most: memory was planned with it."""


def as_member(run: Run, given: Collection[str], num_processes: int, workdir: Path) -> Run:
    """Return the run as the group of this process trains it, and leave word of how large groups can be.

    num_processes: of the whole job.
    """
    devices, processes = jax.devices(), jax.process_count()
    sizes = group_sizes(run, devices, given, processes=processes, count=num_processes)
    watch_over(sizes, workdir, jax.process_index())
    return for_those_left(run, devices, given, whole=len(devices) // processes * num_processes)


def for_those_left(run: Run, devices: Sequence[Any], given: Collection[str], *, whole: int) -> Run:
    """As `for_machine`, on what is left of `whole` devices."""
    run = for_machine(run, devices, given)
    if len(devices) >= whole:
        return run
    smaller = smaller_mesh(run.mesh, len(devices))
    return override(run, {f"mesh.{axis}": size for axis, size in smaller.model_dump().items() if axis in MESH_AXES})


def smaller_mesh(mesh: Mesh, count: int) -> Mesh:
    """Take down the sizes of `fsdp`, `data` and `replica`, in this order each to what still divides, until all sizes
    together are `count`. Where the other axes do not divide it, or one is -1 and takes the rest, all stay."""
    sizes = {axis: int(getattr(mesh, axis)) for axis in MESH_AXES}
    rest = math.prod(size for axis, size in sizes.items() if axis not in GIVE_WAY and size != -1)
    known = math.prod(size for size in sizes.values() if size != -1)
    if count % rest or (-1 in sizes.values() and count % known == 0):
        return mesh
    left = count // rest
    for axis in GIVE_WAY:
        if sizes[axis] != -1:
            sizes[axis] = math.gcd(sizes[axis], left)
            left //= sizes[axis]
    if -1 not in sizes.values():
        sizes["data"] *= left
    return mesh.model_copy(update=sizes)


def group_sizes(
    run: Run, devices: Sequence[Any], given: Collection[str], *, processes: int, count: int
) -> Iterator[int]:
    """Of how many of `count` processes a group can be, so that mesh, model and batch divide; ascending.

    Args:
        run: before anything was decided for these devices.
        devices: of the present group, of `processes` processes with as many each.
    """
    each = len(devices) // processes
    micro_batch = run.data.batch_tokens // run.data.sequence_length // run.data.accumulation_steps
    for size in range(1, count + 1):
        of_group = [devices[0]] * (size * each)
        try:
            fitted = for_those_left(run, of_group, given, whole=count * each)
            mesh = AbstractMesh(tuple(mesh_sizes(fitted.mesh, len(of_group))), MESH_AXES)
            check_fit(mesh, run.model, micro_batch=micro_batch, sequence_length=run.data.sequence_length)
        except UserError:
            continue
        yield size
