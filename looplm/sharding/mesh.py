"""From the config's axis sizes to a device mesh."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType

from looplm.config.schema import Mesh, Model
from looplm.errors import UserError
from looplm.sharding.rules import BATCH_AXES, MESH_AXES


def build_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Lays the devices out on named axes in explicit mode: a wrong layout is an error where it is written.

    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    written = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"{written}: every size must be at least 1, and one of them may be -1 (the rest)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(f"{written}: the sizes do not fit {len(devices)} devices; make their product {len(devices)}")
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES), devices=devices)


def check_fit(mesh: jax.sharding.Mesh, model: Model, micro_batch: int) -> None:
    """Raises UserError when a sharded dim of the model or batch is not a multiple of its mesh axes."""
    shape = dict(mesh.shape)
    batch_shards = math.prod(shape[axis] for axis in BATCH_AXES)
    rules = [
        (f"mesh.fsdp={shape['fsdp']}", shape["fsdp"], "model.dim", model.dim),
        (f"mesh.tensor={shape['tensor']}", shape["tensor"], "model.num_heads", model.num_heads),
        (
            f"mesh.tensor={shape['tensor']}",
            shape["tensor"],
            "model.num_kv_heads",
            model.num_kv_heads or model.num_heads,
        ),
        (f"mesh.tensor={shape['tensor']}", shape["tensor"], "model.hidden_dim", model.hidden_dim),
        (f"mesh.tensor={shape['tensor']}", shape["tensor"], "model.vocab_size", model.vocab_size),
        (f"replica x data x fsdp = {batch_shards}", batch_shards, "the sequences of a micro-batch", micro_batch),
    ]
    if model.value_embedding:
        rules.append((f"mesh.fsdp={shape['fsdp']}", shape["fsdp"], "model.vocab_size", model.vocab_size))
    faults = [
        f"{axis} does not divide {name}={size}; use a divisor of {size}, or change {name}"
        for axis, parts, name, size in rules
        if size % parts
    ]
    if faults:
        raise UserError("; ".join(faults))
