"""What the doctor looks at: devices, links along every mesh axis, storage, versions."""

import hashlib
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from looplm.config.schema import Mesh
from looplm.doctor.known_bad import installed, version_problems
from looplm.errors import UserError
from looplm.hardware import find as find_device
from looplm.ops.attention import Asked, Mask, choose
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import MESH_AXES

REPEATS = 5
DOCUMENTS = Mask("causal", None, 4096, segments_BS=jax.ShapeDtypeStruct((1, 4096), jnp.int32))  # type: ignore[arg-type]
ASKED = Asked(num_queries=4096, dtype=jnp.bfloat16, head_dim=128)
"""An attention as most models have it: which backend would compute it here is told."""
MIB = 2**20


@dataclass(frozen=True)
class Link:
    """A collective along one mesh axis."""

    axis: str
    size: int
    collective: str
    mib: float
    """That every device puts in."""
    seconds: float
    """Median."""


@dataclass(frozen=True)
class Health:
    devices: dict[str, str]
    mesh: dict[str, int]
    links: list[Link]
    storage: dict[str, str]
    versions: dict[str, str]
    problems: list[str] = field(default_factory=list)
    """One line each: what is wrong, and the remedy."""


def examine(config: Mesh, folder: Path, *, mib: int = 16) -> Health:
    """Looks at everything; a job of several processes calls it in all of them.

    Args:
        config: sizes of the mesh axes.
        folder: where runs are kept; a file is written to it, read and deleted.
        mib: size of that file, and of what every device puts into a collective.

    Raises UserError when the mesh does not fit the devices.
    """
    mesh = build_mesh(config)
    problems: list[str] = []
    links = [
        _timed(mesh, axis, name, mib, problems) for axis in MESH_AXES if mesh.shape[axis] > 1 for name in COLLECTIVES
    ]
    versions, platform = installed(), jax.devices()[0].platform
    problems += version_problems(versions, platform)
    storage = _storage(folder, mib, problems)
    return Health(_devices(), dict(mesh.shape), links, storage, versions, problems)


def _devices() -> dict[str, str]:
    kinds = sorted({device.device_kind for device in jax.devices()})
    here = jax.local_devices()[0]
    memory = (here.memory_stats() or {}).get("bytes_limit")
    return {
        "devices": f"{jax.device_count()} x {', '.join(kinds)} ({here.platform})",
        "processes": f"{jax.process_count()}, {jax.local_device_count()} devices on this one",
        "data sheet": sheet.name if (sheet := find_device(here.device_kind)) else "unknown, so no perf/mfu",
        "attention": f"{choose(DOCUMENTS, ASKED)} (4,096 tokens of documents, heads of 128, bfloat16)",
    } | ({"memory of a device": f"{memory / 2**30:.1f} GiB"} if memory else {})


COLLECTIVES: dict[str, tuple[Callable[..., jax.Array], Callable[[int], float]]] = {
    "all-reduce": (jax.lax.psum, lambda size: size * (size + 1) / 2),
    "all-gather": (partial(jax.lax.all_gather, tiled=True), lambda size: size * (size + 1) / 2),
}
"""What is called with (part of a device, axis), and what the result sums to if device i of an axis puts in i + 1."""


def _timed(mesh: jax.sharding.Mesh, axis: str, name: str, mib: int, problems: list[str]) -> Link:
    function, expected = COLLECTIVES[name]
    size, numbers = mesh.shape[axis], mib * MIB // 4
    split = NamedSharding(mesh, PartitionSpec(axis))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(axis), out_specs=PartitionSpec(), check_vma=False)
    def collective(x: jax.Array) -> jax.Array:
        whole = function(x, axis)
        # Only a few numbers leave, so that the time is that of the collective.
        return whole.reshape(-1, numbers)[:, 0]

    make = jax.jit(lambda: jnp.repeat(jnp.arange(1.0, size + 1), numbers, out_sharding=split), out_shardings=split)
    with jax.set_mesh(mesh):
        x = make()
        found = float(np.sum(jax.device_get(collective(x))))
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            jax.block_until_ready(collective(x))
            times.append(time.perf_counter() - started)
    if found != expected(size):
        problems.append(f"{name} over mesh.{axis}={size} gives {found} instead of {expected(size)}; replace the device")
    return Link(axis, size, name, mib, statistics.median(times))


def _storage(folder: Path, mib: int, problems: list[str]) -> dict[str, str]:
    path = folder / f".looplm-doctor-{jax.process_index()}-{os.getpid()}"
    content = os.urandom(MIB) * mib
    try:
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter()
        same = hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()
        read = time.perf_counter()
    except OSError as error:
        problems.append(f"{folder} cannot be written and read ({error.strerror}); mend it or give another --folder")
        return {str(folder): "fails"}
    finally:
        with suppress(OSError):
            path.unlink()
    if not same:
        problems.append(f"{folder} gives back other bytes than were written; do not keep checkpoints there")
    return {str(folder): f"write {mib / (written - started):,.0f} MiB/s, read {mib / (read - written):,.0f} MiB/s"}


def print_health(health: Health, console: Console) -> None:
    for name, value in (health.devices | health.storage | health.versions).items():
        console.print(f"{name}: {value}")
    console.print("mesh: " + " x ".join(f"{axis}={size}" for axis, size in health.mesh.items()))
    if health.links:
        table = Table("axis", "collective", "MiB a device", "ms", "GiB/s a device")
        for link in health.links:
            rate = f"{link.mib / 1024 / link.seconds:.2f}"
            table.add_row(
                f"{link.axis}={link.size}", link.collective, f"{link.mib:g}", f"{link.seconds * 1e3:.2f}", rate
            )
        console.print(table)
    for problem in health.problems:
        console.print(f"problem: {problem}")


def parse_mesh(text: str | None) -> Mesh:
    """`data=2,fsdp=4` -> Mesh; axes that are not named are 1, but for fsdp, which takes the rest. Raises UserError."""
    sizes: dict[str, int] = {}
    for part in (text or "").split(",") if text else ():
        axis, _, size = part.strip().partition("=")
        if axis not in MESH_AXES or not size.lstrip("-").isdigit():
            raise UserError(f"--mesh {text!r}: {part!r} is not axis=size; the axes are {', '.join(MESH_AXES)}")
        sizes[axis] = int(size)
    return Mesh(**sizes)
