"""The cache: keys and values of earlier positions, kept while text is written. It goes through loops and layers and is
changed in place; training has none."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.ops.precision import at_least_fp32

INT8_MAX = 127


class Visit(NamedTuple):
    """Where in a cache a visit of a layer reads and writes."""

    slot: jax.Array
    """The place of the loop and of the call in it, int32: () for all sequences, or (B,) where they are at different
    loops."""
    layer: jax.Array
    """Place of the layer in its stack, int32 ()."""
    row_B: jax.Array | None = None
    """Row of the cache that every sequence of the batch goes on from, int32; several may share one. A row that is not
    there is not written. None: sequence i has row i."""


class Kept(NamedTuple):
    """Keys or values of all places: numbers (slots * calls, layers, B, K, T, H), as the products of attention read
    them."""

    numbers: jax.Array
    scales: jax.Array | None = None
    """What int8 numbers are multiplied with, (slots * calls, layers, B, K, T) float32; None: the numbers are as they
    are."""

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> "Kept":
        """Make room for keys or values; int8 stands for numbers with a scale a head."""
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape[:-1]) if jnp.dtype(dtype) == jnp.int8 else None)

    def encode(self, x_BSKH: jax.Array) -> "Kept":
        """Turn keys or values into what is kept of them."""
        if self.scales is None:
            return Kept(x_BSKH.astype(self.numbers.dtype))
        wide_BSKH = at_least_fp32(x_BSKH)
        scales_BSK = jnp.max(jnp.abs(wide_BSKH), axis=-1) / INT8_MAX
        steps_BSKH = wide_BSKH / jnp.where(scales_BSK == 0, 1, scales_BSK)[..., None]
        return Kept(jnp.round(steps_BSKH).astype(jnp.int8), scales_BSK.astype(self.scales.dtype))

    def decode(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Turn what is kept into keys or values."""
        if self.scales is None:
            return self.numbers.astype(dtype)
        return (self.numbers.astype(self.scales.dtype) * self.scales[..., None]).astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The cache of one stack; place t holds position t.

    The first `own` loops have a slot each, and the loops after them take turns in the slots that are left. With as many
    slots as loops every loop has its own keys; with one, every loop overwrites those of the loop before, so that
    earlier tokens are seen as they were in their last loop; with k, a loop sees them as they were in the last of their
    loops that is the same modulo k.
    """

    keys: Kept
    values: Kept
    own: int = field(default=0, metadata={"static": True})
    calls: int = field(default=1, metadata={"static": True})
    """How often a loop calls the stack; a slot has a place for each, one after the other."""

    @property
    def slots(self) -> int:
        return self.keys.numbers.shape[0] // self.calls

    def slot(self, number_B: jax.Array, call: int | jax.Array = 0) -> jax.Array:
        """Return the place of a call in a loop, int32: () if number_B is (1,), else (B,)."""
        slot_B = self._slot_of(number_B)
        if self.calls > 1:
            slot_B = slot_B * self.calls + call
        return slot_B[0] if slot_B.size == 1 else slot_B

    def write(
        self,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        visit: Visit,
        positions_BS: jax.Array,
        left_BS: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, "KVCache"]:
        """Write the keys and values of a visit, but for tokens that have left.

        Returns (keys, values) of all positions as this visit sees them, (B, K, T, H), and the cache.
        """
        num_places = self.keys.numbers.shape[4]
        row_B = jnp.arange(k_BSKH.shape[0]) if visit.row_B is None else visit.row_B
        places_BS = positions_BS if left_BS is None else jnp.where(left_BS, num_places, positions_BS)
        all_alike = visit.slot.ndim == 0
        slot = visit.slot if all_alike else visit.slot[:, None]
        at = (slot, visit.layer, row_B[:, None], slice(None), places_BS)
        whole = all_alike and visit.row_B is None
        seen = (visit.slot, visit.layer) if whole else (visit.slot, visit.layer, row_B)

        def written(kept: Kept, new_BSKH: jax.Array) -> Kept:
            return jax.tree.map(lambda kept, new: kept.at[at].set(new, mode="drop"), kept, kept.encode(new_BSKH))

        def read(kept: Kept) -> jax.Array:
            return jax.tree.map(lambda leaf: leaf[seen], kept).decode(k_BSKH.dtype)

        cache = replace(self, keys=written(self.keys, k_BSKH), values=written(self.values, v_BSKH))
        return read(cache.keys), read(cache.values), cache

    def fill(
        self,
        exit_BS: jax.Array,
        positions_BS: jax.Array,
        num_loops: int,
        row_B: jax.Array | None = None,
        left_BS: jax.Array | None = None,
    ) -> "KVCache":
        """Copy the keys and values of every token's last loop to the loops that it did not run, so that later tokens
        find the same ones whatever other rows did.

        Args:
            exit_BS: number of the last loop (from 0) that every token ran, of num_loops.
            row_B: see `Visit`.
            left_BS: the tokens that have left; of others nothing is copied. None: all have.
        """
        if self.slots == 1:
            return self
        place_s = jnp.arange(self.slots * self.calls)
        slot_s = place_s // self.calls if self.calls > 1 else place_s
        shared = max(self.slots - self.own, 1)
        last_writer_s = jnp.where(slot_s < self.own, slot_s, num_loops - 1 - (num_loops - 1 - slot_s) % shared)
        exit_slot_BS = self._slot_of(exit_BS)
        source_sBS = jnp.where(last_writer_s[:, None, None] > exit_BS, exit_slot_BS, slot_s[:, None, None])
        if self.calls > 1:
            source_sBS = source_sBS * self.calls + (place_s % self.calls)[:, None, None]
        row_B1 = (jnp.arange(exit_BS.shape[0]) if row_B is None else row_B)[:, None]
        layer_L11 = jnp.arange(self.keys.numbers.shape[1])[:, None, None]
        num_places = self.keys.numbers.shape[4]
        places_BS = positions_BS if left_BS is None else jnp.where(left_BS, positions_BS, num_places)

        def filled(kept: jax.Array) -> jax.Array:
            there = (layer_L11, row_B1, slice(None), places_BS)
            tokens_sLBSK = kept[source_sBS[:, None], *there]
            return kept.at[place_s[:, None, None, None], *there].set(tokens_sLBSK, mode="drop")

        return jax.tree.map(filled, self)

    def _slot_of(self, number: jax.Array) -> jax.Array:
        if self.own >= self.slots:
            return number
        return jnp.where(number < self.own, number, self.own + (number - self.own) % (self.slots - self.own))


class Cache(NamedTuple):
    """The caches of a model. None where it has no such part, or nothing is kept."""

    prelude: KVCache | None = None
    block: KVCache | None = None
    coda: KVCache | None = None


NO_CACHE = Cache()
