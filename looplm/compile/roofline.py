"""The least time of a step on a device: the slowest of products, memory and links, as if each ran at its peak.

Collectives inside loops are taken to overlap with the products around them. Those outside (gather-once, the reduction
of the gradient) have nothing to hide behind and are added. Real steps take longer: large products alone reach 65-80 %
of the peak.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from looplm.compile.collectives import RAGGED, Collective
from looplm.hardware import NETWORK_BYTES_PER_S, Device

TO_ALL = ("all-to-all", RAGGED)


class Roofline(NamedTuple):
    """Seconds of a step."""

    compute_s: float
    memory_s: float
    links_in_loops_s: float
    links_once_s: float

    @property
    def step_s(self) -> float:
        return max(self.compute_s, self.memory_s, self.links_in_loops_s) + self.links_once_s


def roofline(
    device: Device,
    mesh: jax.sharding.Mesh,
    *,
    device_flops: float,
    traffic_bytes: float,
    collectives: Sequence[Collective],
) -> Roofline:
    """device_flops: that a device really does in a step, recomputation and masked attention included."""
    seconds = [
        (c.loop_depth > 0, c.step_bytes / bandwidth(device, mesh, c.axes, to_all=c.kind in TO_ALL)) for c in collectives
    ]
    return Roofline(
        device_flops / device.peak_flops,
        traffic_bytes / device.hbm_bytes_per_s,
        sum(s for inside, s in seconds if inside),
        sum(s for inside, s in seconds if not inside),
    )


def bandwidth(device: Device, mesh: jax.sharding.Mesh, axes: Sequence[str], *, to_all: bool = False) -> float:
    """Bytes/s that a device sends in a collective along these axes.

    On a torus two links for every dim of it along which the devices of a group differ; else the device's links, or the
    network where a group is larger than what they reach.

    Args:
        to_all: what a device sends is for all others, not for its neighbours: on a torus it passes through a quarter of
            a ring on average, in the longest dim of the group.
    """
    group = _group(mesh, axes)
    if device.torus:
        coords = np.array([member.coords for member in group])
        sizes = [len(set(dim)) for dim in coords.T]
        if to_all:
            return 2 * device.link_bytes_per_s / max(1, max(sizes) / 4)
        return 2 * device.link_bytes_per_s * max(1, sum(size > 1 for size in sizes))
    split = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    # Devices of one domain follow each other, so that inner axes lie between the members of a group.
    span = math.prod(mesh.shape[axis] for axis in split[min(map(split.index, set(axes) & set(split)), default=0) :])
    fast = device.link_bytes_per_s and span <= device.domain
    return device.link_bytes_per_s if fast else NETWORK_BYTES_PER_S


def _group(mesh: jax.sharding.Mesh, axes: Sequence[str]) -> list:
    """The first device and all that differ from it along these axes alone."""
    index = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return list(np.atleast_1d(mesh.devices[index]).flat)
