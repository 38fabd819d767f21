"""Finds devices that compute wrongly, or hold wrong weights, without saying so.

Every so many steps the gradient of one micro-batch is computed twice from the same arrays, and digests of what each
device holds before anything is reduced are compared; and where devices hold copies of the same weights, digests of
those are. A sound device gives equal bits (on GPUs only with `--xla_gpu_deterministic_ops=true`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from looplm.model.functional import Params
from looplm.sharding.collective import stand_in
from looplm.train.batch import Batch
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.step import build_loss, learning_of


class Digests(NamedTuple):
    """Not yet read from the devices; uint32. The last dim counts the devices of the mesh."""

    gradient_2N: tuple[jax.Array, jax.Array]
    """Of both computations, (N,) each."""
    params_PN: jax.Array
    """Of every parameter."""


class CorruptionCheck:
    """Two small programs beside the training step, compiled when it is made; nothing is allocated."""

    def __init__(self, program: Program):
        self.program, self.mesh = program, program.mesh
        paths = jax.tree_util.tree_leaves_with_path(program.abstract_state().params)
        self._paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
        self._specs = [leaf.sharding.spec for _, leaf in paths]
        state, batch, drawn = program.abstract_state(), program.batch.abstract(), program.batch.abstract_drawn()
        gradient_digest = jax.jit(build_gradient_digest(program))
        with jax.set_mesh(self.mesh):
            self._gradient = gradient_digest.lower(state.params, batch, state.carry, drawn, state.step).compile()
            self._weights = jax.jit(_digest_each).lower(state.params).compile()

    def start(self, state: TrainState, batch: Batch, drawn: jax.Array) -> Digests:
        """Computes while the host goes on."""
        first, second = (self._gradient(state.params, batch, state.carry, drawn, state.step) for _ in range(2))
        return Digests((first, second), self._weights(state.params))

    def faults(self, digests: Digests) -> list[str]:
        """What is wrong, each with the devices; waits for the digests."""
        found = jax.device_get(digests)
        first, second = found.gradient_2N
        faults = []
        if bad := [self._name(int(index)) for index in np.flatnonzero(first != second)]:
            faults.append(f"computed one gradient twice with different bits: {', '.join(bad)}")
        odd: dict[str, list[str]] = {}
        for path, spec, digest_N in zip(self._paths, self._specs, found.params_PN, strict=True):
            if devices := [self._name(index) for index in self._odd_copies(spec, digest_N)]:
                odd.setdefault(", ".join(devices), []).append(path)
        faults += [f"copies of {paths[0]}{_more(paths)} differ: {devices}" for devices, paths in odd.items()]
        return faults

    def _odd_copies(self, spec: PartitionSpec, digest_N: np.ndarray) -> Iterator[int]:
        """Devices whose part of a parameter is not what most holders of the part have; all where there is no most."""
        split = {
            axis for entry in spec if entry is not None for axis in ((entry,) if isinstance(entry, str) else entry)
        }
        places = np.stack(np.unravel_index(np.arange(digest_N.size), tuple(self.mesh.shape.values())), axis=-1)
        kept = [number for number, axis in enumerate(self.mesh.axis_names) if axis in split]
        parts: dict[tuple, list[int]] = {}
        for index, place in enumerate(places):
            parts.setdefault(tuple(place[kept]), []).append(index)
        for holders in parts.values():
            (most, count), *others = Counter(int(digest_N[index]) for index in holders).most_common()
            if others:
                tied = count == others[0][1]
                yield from (index for index in holders if tied or digest_N[index] != most)

    def _name(self, index: int) -> str:
        device = self.mesh.devices.flat[index]
        return f"{device.device_kind} {device.id} (process {device.process_index})"


def build_gradient_digest(program: Program) -> Callable[..., jax.Array]:
    """Returns digest(params, batch, carry, drawn_depth, step) -> (N,): of the first micro-batch's gradient on every
    device."""
    lm, dtype = program.lm, program.dtype
    sums, learning = build_loss(program.run, lm, program.depths, dtype=dtype), learning_of(program.run, lm)

    def gradient_digest(params: Params, batch: Batch, carry: Any, drawn: jax.Array, step: jax.Array) -> jax.Array:
        whole = lm.gather(params, dtype, per_layer=program.gathers_per_layer)
        stand_ins = jax.tree.map(stand_in, learning.only(whole), learning.only(params))
        first = jax.tree.map(lambda leaf: leaf[0], (batch, carry))
        gradient: Any = jax.grad(sums, has_aux=True)(stand_ins, whole, *first, drawn, step)[0]
        return jnp.sum(_digest_each(gradient), axis=0, dtype=jnp.uint32)

    return gradient_digest


def _digest_each(tree: Any) -> jax.Array:
    """What every device holds of every leaf, partial sums too: (leaves, N) uint32, alike on all devices."""
    axes = jax.sharding.get_abstract_mesh().axis_names

    def on_this_device(*leaves: jax.Array) -> jax.Array:
        return jnp.stack([_digest(leaf) for leaf in leaves])[:, None]

    leaves = jax.tree.leaves(tree)
    specs = tuple(jax.typeof(leaf).sharding.spec for leaf in leaves)
    digests_PN = jax.shard_map(on_this_device, in_specs=specs, out_specs=PartitionSpec(None, axes), check_vma=False)(
        *leaves
    )
    return jax.sharding.reshard(digests_PN, PartitionSpec())


def _digest(leaf: jax.Array) -> jax.Array:
    """Of the bits and their places; a change of one number always shows."""
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).reshape(-1)
    # Odd factors are invertible modulo 2^32.
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def _more(paths: list[str]) -> str:
    return f" and {len(paths) - 1} more" if len(paths) > 1 else ""
