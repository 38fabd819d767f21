"""What a compiled program sends between devices: kind, bytes on the wire, mesh axes, depth of the loops around it."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from looplm.compile.hlo import Computation, Instruction, Module, array_bytes, dtypes, shape_of

RAGGED = "ragged-all-to-all"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", RAGGED)
OPCODES = {f"{kind}{suffix}": kind for kind in KINDS for suffix in ("", "-start")}
SCATTERED = "all-reduce-scatter"
"""How a TPU program calls the fusion of an all-reduce and the slice that a device keeps."""
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\))?\s*\{([^}]*)\}"
)
LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)+)\}")


class Collective(NamedTuple):
    kind: str
    dtypes: tuple[str, ...]
    axes: tuple[str, ...]
    """Mesh axes along which the devices of a group differ."""
    group_size: int
    wire_bytes: float
    """That a device sends each time, by the ring algorithms: (n-1)/n of what is gathered or scattered, twice that for
    an all-reduce."""
    loop_depth: int
    """Loops around it in the program; 0 means once a step."""
    executions: float
    """A step."""
    name: str
    """Where it comes from in the source program (`op_name`)."""

    @property
    def step_bytes(self) -> float:
        """That a device sends in a step."""
        return self.wire_bytes * self.executions


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """All collectives of more than one device, in program order.

    Args:
        mesh: size of every axis, in the mesh's order.
    """
    found: dict[object, Collective] = {}
    for site in module.walk():
        if kind := OPCODES.get(site.instruction.opcode):
            if site.computation_name.startswith(SCATTERED):
                kind = "reduce-scatter"
            collective = _collective(kind, site.instruction, site.computation, mesh, site.loop_depth, site.executions)
            # A TPU program cuts an asynchronous collective into a start, fusions that go on with it, and an end: all
            # of them print the collective, with one channel and origin. One that was combined may share a channel with
            # another, and those that a `shard_map` writes itself all share one. A ragged one is not cut.
            channel = re.search(r"channel_id=(\d+)", site.instruction.attributes)
            origin = re.search(r"metadata=\{[^}]*\}", site.instruction.attributes)
            key: object = len(found)
            if channel and kind != RAGGED:
                key = kind, channel[1], collective.wire_bytes, origin and origin[0]
            if collective.group_size > 1 and (key not in found or found[key].executions < collective.executions):
                found[key] = collective
    return list(found.values())


def _collective(
    kind: str,
    instruction: Instruction,
    computation: Computation,
    mesh: Mapping[str, int],
    loop_depth: int,
    executions: float,
) -> Collective:
    groups = device_groups(instruction.attributes, math.prod(mesh.values()))
    operands = [shape_of(operand, computation) for operand in instruction.operands]
    if kind == RAGGED:
        # Rows, where they get to, and offsets. How many rows are sent depends on data: at most the smaller of the two.
        operands = sorted(operands[:2], key=array_bytes)[:1]
    shapes = "".join(operands)
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # (axis, group, member)
    differ = (places != places[:, :, :1]).any(axis=(1, 2))
    size = groups.shape[1]
    wire = array_bytes(shapes) * sent_bytes(kind, size)
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind,
        tuple(sorted(dtypes(shapes))),
        tuple(axis for axis, d in zip(mesh, differ, strict=True) if d),
        size,
        wire,
        loop_depth,
        executions,
        source[1] if source else "",
    )


def sent_bytes(kind: str, size: int) -> float:
    """Bytes that a device sends, for each byte of its operand."""
    match kind:
        case "all-gather":
            return size - 1
        case "all-reduce":
            return 2 * (size - 1) / size
        case "collective-permute":
            return 1.0
        case _:
            return (size - 1) / size


def device_groups(attributes: str, num_devices: int) -> np.ndarray:
    """(groups, members): positions in the mesh; for a permutation (pairs, 2).

    XLA writes groups as lists, as a transposed range, or by the axes of a mesh.
    """
    if match := IOTA.search(attributes):
        shape, dims, order = match.groups()
        return _transposed(num_devices, dims, order).reshape(_ints(shape))
    if match := MESH.search(attributes):
        axes, dims, order, ids, members = match.groups()
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
        devices = np.array(_ints(ids)) if ids else _transposed(num_devices, dims or str(num_devices), order)
        moved = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", members)]
        places = np.moveaxis(devices.reshape(tuple(sizes.values())), moved, range(-len(moved), 0))
        return places.reshape(-1, math.prod(places.shape[-len(moved) :]))
    if match := LISTS.search(attributes):
        return np.array([_ints(text) for text in re.findall(r"\{([\d,]+)\}", match[1])])
    return np.arange(num_devices)[None]


def _transposed(num_devices: int, dims: str, order: str | None) -> np.ndarray:
    devices = np.arange(num_devices).reshape(_ints(dims))
    return devices.transpose(_ints(order)) if order else devices


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
