"""The size of the cache of a generation, and which keys and values a loop sees (KV policies)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.config.schema import Model
from looplm.errors import UserError
from looplm.model.cache import Cache, KVCache

POLICIES = "each, ragged, last or ring:K"


def new_cache(config: Model, *, batch_size: int, length: int, slots: int, dtype: jax.typing.DTypeLike) -> Cache:
    """Make an empty cache of 2 * (prelude + slots * L + coda) * B * length * K * H numbers.

    Args:
        length: positions that have a place.
        slots: how many loops have places of their own; see `KVCache`.
    """

    def room(layers: int, slots: int = 1) -> KVCache | None:
        shape = (slots, layers, batch_size, length, config.kv_heads, config.head_size)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) if layers else None

    return Cache(room(config.prelude_layers), room(config.block_layers, slots), room(config.coda_layers))


class Policy(NamedTuple):
    """Which keys and values of earlier tokens a loop sees."""

    slots: int
    """Slots of the cache; see `KVCache`."""
    exact: bool
    """Whether a token that has left runs on for its keys and values alone, as in the official code of Ouro: no loop is
    saved. Else deeper loops see it as it was in its last one, and loops after all tokens have left do not run."""


def parse_policy(text: str | None, num_loops: int) -> Policy:
    """Read a policy, which says of what loop of an earlier token a loop sees keys and values:

        each     of the same loop, which all tokens run
        ragged   of the same loop, or of the token's last one if it left before
        last     of the token's last loop
        ring:K   of the token's latest loop whose number is the same modulo K

    None is `ragged`, which is `each` where nobody leaves early. Raises UserError for anything else.
    """
    name, _, value = (text or "ragged").partition(":")
    if name in ("each", "ragged") and not value:
        return Policy(num_loops, exact=name == "each")
    if name == "last" and not value:
        return Policy(1, exact=False)
    if name == "ring" and value.isdecimal() and int(value) >= 1:
        return Policy(min(int(value), num_loops), exact=False)
    raise UserError(f"KV policy {text!r} is not known; use {POLICIES} with K of at least 1, e.g. ring:4")
