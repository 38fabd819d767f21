"""The device mesh: from the axis sizes of a config to devices, and which rows of a batch a process reads."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, get_args

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from looplm.config.schema import Mesh, Model, MoE, Place
from looplm.errors import UserError
from looplm.sharding.rules import BATCH_AXES, MESH_AXES, SEQUENCE_AXES, AnyMesh


def build_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Lay the devices out on named axes, in explicit mode: a wrong layout is an error where it is written.

    devices: None means all. On several slices the outer axes, `replica` first, go across the slow links between them.
    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(slices.values())) > 1:
        raise UserError(f"the slices have {sorted(slices.values())} devices; start on slices of one size")
    # Not jax.make_mesh, which refuses axes that take a part of a torus dim (fsdp=32 of v5p:4x4x4), except on v5e.
    if len(slices) == 1:
        arranged = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        across, within = across_slices(sizes, len(slices))
        arranged = create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(arranged, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def mesh_sizes(config: Mesh, count: int) -> list[int]:
    """Return the size of every axis on so many devices. Raises UserError when they do not multiply to that."""
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    written = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True) if size != 1)
    written = written or "every mesh axis = 1"
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"{written}: every size must be at least 1, and one of them may be -1 (the rest)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise UserError(f"{written}: the sizes do not fit {count} devices; make their product {count}")
    return sizes


def across_slices(sizes: Sequence[int], num_slices: int) -> tuple[list[int], list[int]]:
    """Split the sizes into (factors over the slices, factors within one slice): outer axes take the slow links.

    The product of the sizes is a multiple of the number of slices, so every slice finds a place.
    """
    across = []
    for size in sizes:
        across.append(math.gcd(size, num_slices))
        num_slices //= across[-1]
    return across, [size // factor for size, factor in zip(sizes, across, strict=True)]


def check_fit(mesh: AnyMesh, model: Model, *, micro_batch: int, sequence_length: int) -> None:
    """Check that all sharded dims of model and batch are multiples of their mesh axes.

    Args:
        micro_batch: sequences of a micro-batch.
        sequence_length: tokens of a sequence.

    Raises UserError, which names all dims that are not.
    """
    rules = [
        (("fsdp",), "model.dim", model.dim),
        (("tensor",), "model.num_heads", model.num_heads),
        (("tensor",), "model.num_kv_heads", model.kv_heads),
        (("tensor",), "model.vocab_size", model.vocab_size),
        (BATCH_AXES, "the sequences of a micro-batch", micro_batch),
        (SEQUENCE_AXES, "data.sequence_length", sequence_length),
    ]
    for place in get_args(Place):
        moe = model.feed_forward_of(place)
        if not model.layers_of(place):
            continue
        if not isinstance(moe, MoE) or moe.dense_layers:
            rules.append((("tensor",), "model.hidden_dim", model.hidden_dim))
        if isinstance(moe, MoE):
            name = _name_of(model, place)
            rules.append((("expert",), f"{name}.num_experts", moe.num_experts))
            rules.append((("tensor",), f"{name}.expert_dim", moe.expert_dim or model.hidden_dim))
            rules.append((("tensor",), f"{name}.shared_dim", moe.shared_dim))
    if model.value_embedding:
        rules.append((("fsdp",), "model.vocab_size", model.vocab_size))
    faults: list[str] = []
    for axes, name, size in dict.fromkeys(rules):
        split = {axis: mesh.shape[axis] for axis in axes if mesh.shape[axis] > 1}
        if size % (parts := math.prod(split.values())):
            written = " x ".join(f"mesh.{axis}={count}" for axis, count in split.items())
            written += f" = {parts}" if len(split) > 1 else ""
            what, change = (f"{name}={size}", name) if "." in name else (f"{name}, {size}", "data.batch_tokens")
            faults.append(f"{written} does not divide {what}; use a divisor of {size}, or change {change}")
    if faults:
        raise UserError("; ".join(faults))


def _name_of(model: Model, place: Place) -> str:
    own = f"{place}_feed_forward"
    return f"model.{own}" if getattr(model, own, None) else "model.feed_forward"


class BatchPart(NamedTuple):
    """The rows of a global batch that this process reads: part `part` of `num_parts` equal, contiguous ones."""

    part: int
    num_parts: int
    places: tuple[int, ...]
    """The places on the mesh where the rows lie; they may be scattered where hosts are blocks of a torus."""
    num_places: int
    """How many places the whole mesh has."""


def batch_part(mesh: jax.sharding.Mesh) -> BatchPart:
    """Find out which rows of a batch this process reads.

    Processes that differ only in `context` or `tensor` read the same rows. Which rows lie at which place of the mesh
    makes no difference to a step.

    Raises UserError when the places of two processes overlap in part.
    """
    places: dict[int, set[int]] = {}
    num_places = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    for device, index in NamedSharding(mesh, PartitionSpec(BATCH_AXES)).devices_indices_map((num_places,)).items():
        places.setdefault(device.process_index, set()).add(index[0].start or 0)  # type: ignore
    parts = sorted({tuple(sorted(of_process)) for of_process in places.values()})
    if sum(map(len, parts)) != num_places or len({len(part) for part in parts}) != 1:
        raise UserError(
            f"the places of the processes in a batch, {parts}, overlap in part; give the outer mesh axes to processes "
            "and the inner ones to their devices"
        )
    # Described devices belong to other processes, of which any will do.
    mine = tuple(sorted(places.get(jax.process_index(), places[min(places)])))
    return BatchPart(parts.index(mine), len(parts), mine, num_places)
