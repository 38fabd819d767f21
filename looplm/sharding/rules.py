"""The sharding policy: one table from logical axes to mesh axes for parameters, one for activations.

Parameters carry logical axes (`embed`, `heads`, ...) from the module that declares them; those of activations are named
where they are made. Without a mesh (`jax.set_mesh` not called) no layout is asked for and the model is plain JAX.
"""

import math
from collections.abc import Iterable, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

AnyMesh = Mesh | AbstractMesh

MESH_AXES = ("replica", "data", "fsdp", "expert", "context", "tensor")
"""Axes of a mesh, from the slowest links to the fastest."""
BATCH_AXES = ("replica", "data", "fsdp", "expert")
"""The batch is split over these; parameters are equal on all of them once `fsdp` is gathered."""
SEQUENCE_AXES = ("context", "tensor")
"""The sequence is split over these between the branches of a layer."""

PARAMETER_AXES: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "embed_out": None,  # the second D of a (D, D) matrix
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "hidden": "tensor",
    "experts": "expert",
    "head_experts": None,  # experts of an attention's projection: every device holds all of them
    "routes": None,  # experts as the router's outputs: every device scores all of them
    "vocab": "tensor",
    "value_vocab": "fsdp",  # the vocabulary of a table whose heads are split over `tensor`
    "positions": None,
    "channels": None,
    "streams": None,
    "rank": None,
    "one": None,
}

ACTIVATION_AXES: dict[str, str | tuple[str, ...] | None] = {
    "loops": None,
    "layers": None,
    "batch": BATCH_AXES,
    "sequence": "context",
    "residual": SEQUENCE_AXES,  # the sequence between the branches of a layer
    "all_keys": None,  # the sequence that every query looks at
    "streams": None,
    "embed": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "hidden": "tensor",
    "routes": None,
    "head_experts": None,
    "vocab": "tensor",
    "rank": None,
    "one": None,
}


def parameter_spec(axes: Sequence[str], shape: Sequence[int], mesh: AnyMesh) -> PartitionSpec:
    """Return the spec of a parameter; leading dims of stacks are not named by `axes`."""
    stacked = ("layers",) * (len(shape) - len(axes))
    return _spec((PARAMETER_AXES[axis] for axis in (*stacked, *axes)), mesh)


def activation_spec(*axes: str) -> PartitionSpec | None:
    """Return the spec of an activation, to be given as `out_sharding`; None without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else _spec((ACTIVATION_AXES[axis] for axis in axes), mesh)


def placement(mesh: Mesh, *axes: str) -> NamedSharding:
    """Return the sharding of an array from the host that has the axes of an activation."""
    return NamedSharding(mesh, _spec((ACTIVATION_AXES[axis] for axis in axes), mesh))


def splitting(mesh: AnyMesh) -> frozenset[str]:
    """Return the axes of a mesh that split something: those of more than one device."""
    return frozenset(axis for axis, size in mesh.shape.items() if size > 1)


def _spec(entries: Iterable[str | tuple[str, ...] | None], mesh: AnyMesh) -> PartitionSpec:
    """Name only axes that split something. JAX takes `float32[1@data]` and `float32[1]` for two types, also where
    `data` has one device, and loses the name wherever a dim of size one is reshaped or spread out: with one sequence,
    or one key/value head, the operands of a product, or the state before and after a loop, would not fit together."""
    splits = splitting(mesh)

    def named(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
        axes = (entry,) if isinstance(entry, str) else entry or ()
        return tuple(axis for axis in axes if axis in splits)

    return PartitionSpec(*map(named, entries))


def num_shards(*axes: str) -> int:
    """Count the parts into which these mesh axes together split something; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes)
