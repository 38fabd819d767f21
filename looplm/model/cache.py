"""The cache: keys and values of earlier positions, kept while text is written. It goes through loops and layers and is
changed in place; training has none."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Visit(NamedTuple):
    """Where in a cache a visit of a layer reads and writes."""

    slot: jax.Array
    """The slot of the loop, int32: () for all rows, or (B,) where rows are at different loops."""
    layer: jax.Array
    """Place of the layer in its stack, int32 ()."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The cache of one stack; place t holds position t.

    Loop n uses slot n % slots: with as many slots as loops every loop has its own keys; with one, every loop overwrites
    those of the loop before, so that earlier tokens are seen as they were in their last loop; with k, a loop sees them
    as they were in the last of their loops that is the same modulo k.
    """

    keys: jax.Array
    """(slots, layers, B, T, K, H), in the compute type."""
    values: jax.Array
    """Likewise."""

    def slot(self, number_B: jax.Array) -> jax.Array:
        """Return the slot of a loop, int32: () if number_B is (1,), else (B,)."""
        slot_B = number_B % self.keys.shape[0]
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

        Returns (keys, values) of all positions as this visit sees them, (B, T, K, H), and the cache.
        """
        row_B = jnp.arange(k_BSKH.shape[0])
        places_BS = positions_BS if left_BS is None else jnp.where(left_BS, self.keys.shape[3], positions_BS)
        all_alike = visit.slot.ndim == 0
        at = (visit.slot if all_alike else visit.slot[:, None], visit.layer, row_B[:, None], places_BS)
        seen = (visit.slot, visit.layer) if all_alike else (visit.slot, visit.layer, row_B)

        def written(kept: jax.Array, new_BSKH: jax.Array) -> jax.Array:
            return kept.at[at].set(new_BSKH.astype(kept.dtype), mode="drop")

        keys, values = written(self.keys, k_BSKH), written(self.values, v_BSKH)
        return keys[seen], values[seen], KVCache(keys, values)

    def fill(self, exit_BS: jax.Array, positions_BS: jax.Array, num_loops: int) -> "KVCache":
        """Copy the keys and values of every token's last loop to the loops that it did not run, so that later tokens
        find the same ones whatever other rows did.

        exit_BS: number of the last loop (from 0) that every token ran, of num_loops.
        """
        slots = self.keys.shape[0]
        slot_s = jnp.arange(slots)
        last_writer_s = num_loops - 1 - (num_loops - 1 - slot_s) % slots
        source_sBS = jnp.where(last_writer_s[:, None, None] > exit_BS, exit_BS % slots, slot_s[:, None, None])
        row_B1 = jnp.arange(exit_BS.shape[0])[:, None]
        layer_L11 = jnp.arange(self.keys.shape[1])[:, None, None]

        def filled(kept: jax.Array) -> jax.Array:
            tokens_sLBSKH = kept[source_sBS[:, None], layer_L11, row_B1, positions_BS]
            return kept.at[slot_s[:, None, None, None], layer_L11, row_B1, positions_BS].set(tokens_sLBSKH)

        return KVCache(filled(self.keys), filled(self.values))


class Cache(NamedTuple):
    """The caches of a model. None where it has no such part, or nothing is kept."""

    prelude: KVCache | None = None
    block: KVCache | None = None
    coda: KVCache | None = None


NO_CACHE = Cache()
