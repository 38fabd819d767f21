"""How a sequence that is split over `mesh.context` lies on the devices, and how queries meet the keys of the others."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from looplm.config.schema import MoE, Own, Place, Run
from looplm.hardware import find as find_device
from looplm.sharding.rules import BATCH_AXES, AnyMesh

MOST_OF_MEMORY = 1 / 8
"""Share of a device's memory from which on `sharding.keys = auto` passes keys around."""


@dataclass(frozen=True)
class Split:
    """A sequence on C devices."""

    parts: int
    """C."""
    zigzag: bool
    """Whether device i has the chunks i and 2C - 1 - i of 2C, so that all have the same work where a token sees what
    precedes it; else device i has the part i of C."""
    ring: bool
    """Whether keys and values go around the devices; else every device gathers them."""

    def __str__(self) -> str:
        """Return a line for the console."""
        order, keys = "zig-zag" if self.zigzag else "their", "going around" if self.ring else "gathered"
        return f"sequences on {self.parts} devices each, tokens in {order} order, keys {keys}"

    def order(self, length: int) -> np.ndarray:
        """Return the places in the sequence of its tokens as they lie on the devices, one after the other, (S,)."""
        places = np.arange(length, dtype=np.int32)
        if not self.zigzag:
            return places
        chunks = places.reshape(2 * self.parts, -1)
        return np.stack([chunks[: self.parts], chunks[: self.parts - 1 : -1]], axis=1).reshape(-1)

    def in_order(self, x_BT: jax.Array) -> jax.Array:
        """Put whole sequences (B, T, ...) back into their order, on one device."""
        if not self.zigzag:
            return x_BT
        x_BC2T = x_BT.reshape(x_BT.shape[0], self.parts, 2, -1, *x_BT.shape[2:])
        return jnp.concatenate([x_BC2T[:, :, 0], x_BC2T[:, ::-1, 1]], axis=1).reshape(x_BT.shape)


def split_of(run: Run, mesh: AnyMesh) -> Split | None:
    """Choose how the sequences of a run lie on a mesh; None where they are not split.

    Tokens stay in their order where a part might look at neighbours (a user's own) or at who comes first (experts with
    a capacity), and where the order balances nothing: a token that sees both sides.
    """
    parts, model, length = dict(mesh.shape).get("context", 1), run.model, run.data.sequence_length
    if parts == 1:
        return None
    own = any(isinstance(part, Own) for part in (model.core, model.halting, model.injection, run.objective))
    places: tuple[Place, ...] = ("prelude", "block", "coda")
    limited = any(isinstance(moe := model.feed_forward_of(p), MoE) and moe.capacity_factor is not None for p in places)
    zigzag = model.attention_mask != "full" and not own and not limited and length % (2 * parts) == 0
    return Split(parts, zigzag, ring=_passes_around(run, mesh))


def _passes_around(run: Run, mesh: AnyMesh) -> bool:
    """Decide what `sharding.keys` comes to."""
    device = find_device(_kind_of(mesh))
    needs_all = run.model.positions.kind == "relative" or run.model.attention_backend == "dense"  # scores in memory
    if run.sharding.keys != "auto" or device is None or needs_all:
        return run.sharding.keys == "ring"
    sequences = run.data.batch_tokens // run.data.sequence_length // run.data.accumulation_steps
    for axis in BATCH_AXES:
        sequences //= mesh.shape[axis]
    tokens, channels = sequences * run.data.sequence_length, run.model.kv_heads * run.model.head_size
    # Keys and values, and their gradients, in two bytes.
    gathered = 4 * 2 * tokens * channels / mesh.shape["tensor"]
    return gathered >= device.memory_bytes * MOST_OF_MEMORY


def _kind_of(mesh: AnyMesh) -> str:
    device = mesh.abstract_device if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0]
    return "" if device is None else device.device_kind
