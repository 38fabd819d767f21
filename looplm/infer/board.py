"""The board: all that rows of text that are being written have on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.model.cache import Cache


class Counts(NamedTuple):
    """What was computed so far, int32 each."""

    ticks: jax.Array
    """Calls of the block: one loop of all items that are computed together."""
    slots: jax.Array
    """Items in these calls, alive or not."""
    used: jax.Array
    """Of those, the ones that were alive."""
    written: jax.Array
    """Tokens that became certain."""
    drafted: jax.Array
    """Drafts that were compared with the full depth."""
    accepted: jax.Array
    """Of those, the ones that it would have written too."""

    @classmethod
    def zero(cls) -> "Counts":
        return cls(*(jnp.int32(0) for _ in cls._fields))

    def add(self, **amounts: jax.Array | int) -> "Counts":
        """Count more."""
        return self._replace(**{name: getattr(self, name) + amount for name, amount in amounts.items()})


class Board(NamedTuple):
    """B rows of T places."""

    cache: Cache
    tokens_BT: jax.Array
    """Prompt and what was written, by position; behind `length_B` there are drafts, or anything. int32."""
    loops_BT: jax.Array
    """After how many loops a written token was read, int32."""
    length_B: jax.Array
    """How many tokens are certain, int32."""
    room_B: jax.Array
    """How many there may be, int32."""
    ended_B: jax.Array
    """True after an end token, which is not kept, and for rows that hold no text."""
    stream_B: jax.Array
    """Random stream of every row, uint32."""
    items: Any
    """What a scheduler keeps from tick to tick."""
    counts: Counts

    @property
    def active_B(self) -> jax.Array:
        """Rows that go on."""
        return ~self.ended_B & (self.length_B < self.room_B)

    def token_at(self, position_B: jax.Array) -> jax.Array:
        """Return the token of every row at a position of its own, (B,)."""
        return jnp.take_along_axis(self.tokens_BT, position_B[:, None], axis=1, mode="clip")[:, 0]

    def commit(self, tokens_BS: jax.Array, loops_BS: jax.Array, num_B: jax.Array, end_ids_N: jax.Array) -> "Board":
        """Append the first num_B of these tokens to every row, up to its end token, in the room that it has."""
        places_BS = self.length_B[:, None] + jnp.arange(tokens_BS.shape[1])
        given_BS = jnp.arange(tokens_BS.shape[1]) < num_B[:, None]
        given_BS &= self.active_B[:, None] & (places_BS < self.room_B[:, None])
        ends_BS = given_BS & jnp.any(tokens_BS[:, :, None] == end_ids_N, axis=-1)
        kept_BS = given_BS & (jnp.cumsum(ends_BS, axis=1) == 0)
        row_B1 = jnp.arange(tokens_BS.shape[0])[:, None]
        at = (row_B1, jnp.where(kept_BS, places_BS, self.tokens_BT.shape[1]))
        num_kept_B = jnp.sum(kept_BS, axis=1, dtype=jnp.int32)
        return self._replace(
            tokens_BT=self.tokens_BT.at[at].set(tokens_BS, mode="drop"),
            loops_BT=self.loops_BT.at[at].set(loops_BS, mode="drop"),
            length_B=self.length_B + num_kept_B,
            ended_B=self.ended_B | jnp.any(ends_BS, axis=1),
            counts=self.counts.add(written=jnp.sum(num_kept_B)),
        )
