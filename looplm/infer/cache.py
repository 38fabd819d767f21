"""The size of the cache of a generation, and which keys and values a loop sees (KV policies)."""

from dataclasses import dataclass
from typing import get_args

import jax
import jax.numpy as jnp

from looplm.config.schema import ConvReLU, ConvSwiGLU, DepthRouter, LatentFeedbackCore, Model, Place, SequenceMLP
from looplm.errors import UserError
from looplm.model.cache import Cache, Kept, KVCache

POLICIES = "each, ragged, last, single, first, anchor:K or ring:K"
ANCHORS = 8
"""Loops with a slot of their own where `anchor` says no number (arXiv 2502.05171)."""
STORED = {"bf16": jnp.bfloat16, "int8": jnp.int8}
"""Types of the cache beside the compute type."""


@dataclass(frozen=True)
class Policy:
    """Which keys and values of earlier tokens a loop sees, and as what they are kept."""

    slots: int
    """Slots of the block's cache, and of these the first so many for one loop each; see `KVCache`."""
    own: int = 0
    exact: bool = False
    """Whether a token that has left runs on for its keys and values alone, as in the official code of Ouro: no loop is
    saved. Else deeper loops see it as it was in its last one, and loops after all tokens have left do not run."""
    stored: str | None = None
    """A key of `STORED`; None: the compute type."""

    def dtype(self, compute: jax.typing.DTypeLike) -> jnp.dtype:
        """Return the type in which the cache is kept."""
        return jnp.dtype(compute if self.stored is None else STORED[self.stored])


def new_cache(config: Model, *, batch_size: int, length: int, policy: Policy, dtype: jax.typing.DTypeLike) -> Cache:
    """Make an empty cache of `cache_bytes`.

    Args:
        length: positions that have a place.
        dtype: the compute type.
    """
    kept = policy.dtype(dtype)

    def room(layers: int, slots: int = 1, own: int = 0, calls: int = 1) -> KVCache | None:
        shape = (slots * calls, layers, batch_size, config.kv_heads, length, config.head_size)
        return KVCache(Kept.empty(shape, kept), Kept.empty(shape, kept), own, calls) if layers else None

    block = room(config.largest_block, policy.slots, policy.own, config.calls_per_loop)
    return Cache(room(config.prelude_layers), block, room(config.coda_layers))


def check_writes(config: Model) -> None:
    """Raise UserError for a model that cannot write: what a token needs of the others is not in a cache."""
    kinds = [config.feed_forward_of(place) for place in get_args(Place)]
    unkept = {
        "model.front": config.front is not None,
        "model.attention_mask=full": config.attention_mask == "full",
        # The cache has no mark for tokens that a later one does not see in some loops.
        f"model.halting={config.halting.kind}": isinstance(config.halting, DepthRouter),
        # A written latent is a state, and not a token that was drawn.
        f"model.core={config.core.kind}": isinstance(config.core, LatentFeedbackCore),
        # Token by token the places would be others: what leaves a memory is compressed a sequence at a time.
        "model.memory=compressive": config.memory is not None and config.memory.compressed_length > 0,
        "model.attention=sequence_mlp": isinstance(config.attention, SequenceMLP),
        **{f"model.feed_forward={kind.kind}": isinstance(kind, ConvSwiGLU | ConvReLU) for kind in kinds},
    }
    for part in (name for name, there in unkept.items() if there):
        raise UserError(
            f"generation keeps keys and values of earlier tokens alone, and {part} needs more of them; score whole "
            "sequences instead"
        )


def cache_bytes(config: Model, *, batch_size: int, length: int, policy: Policy, dtype: jax.typing.DTypeLike) -> int:
    """Return 2 * (prelude + slots * calls * L + coda) * B * length * K heads of H numbers, with 4 bytes a head for the
    scale of int8."""
    block = policy.slots * config.calls_per_loop * config.largest_block
    visits = config.prelude_layers + block + config.coda_layers
    kept = policy.dtype(dtype)
    head = config.head_size * kept.itemsize + (4 if kept == jnp.int8 else 0)
    return 2 * visits * batch_size * length * config.kv_heads * head


def parse_policy(text: str | None, num_loops: int) -> Policy:
    """Read a policy, which says of what loop of an earlier token a loop sees keys and values:

        each         of the same loop, which all tokens run
        ragged       of the same loop, or of the token's last one if it left before; the memory of each, fewer loops
        last, single of the token's last loop
        first        the first loop of the first one, the others of the token's last loop
        anchor:K     the first K loops of the same loop, the others of the token's last one
        ring:K       of the token's latest loop whose number is the same modulo K

    `,bf16` or `,int8` behind it says as what they are kept; int8 has a scale for every head of every token. None is
    `ragged`, which is `each` where nobody leaves early. Raises UserError for anything else.
    """
    rule, *options = (text or "ragged").split(",")
    name, _, value = rule.partition(":")
    stored = options[0].strip() if options else None
    number = int(value) if value.isdecimal() else 0
    takes_number = name in ("ring", "anchor")
    if len(options) > 1 or (stored is not None and stored not in STORED) or (value and not (takes_number and number)):
        raise _unknown(text)
    match name:
        case "each" | "ragged":
            return Policy(num_loops, exact=name == "each", stored=stored)
        case "last" | "single":
            return Policy(1, stored=stored)
        case "first" | "anchor":
            own = 1 if name == "first" else number or ANCHORS
            return Policy(min(own + 1, num_loops), min(own, num_loops), stored=stored)
        case "ring" if number:
            return Policy(min(number, num_loops), stored=stored)
    raise _unknown(text)


def usual_kv(config: Model, text: str | None, num_loops: int) -> str | None:
    """Return the policy that was asked for, or the one that a model needs; None where `parse_policy` is to choose.

    A model whose loops all see the memory of the last one sees tokens that were written before in the same way.
    Raises UserError for a policy that has more.
    """
    memory = config.memory
    if memory is None or not memory.length or memory.loops != "last":
        return text
    text = text or "last"
    if parse_policy(text, num_loops).slots > 1:
        raise UserError(
            f"kv={text} keeps keys of several loops, and with model.memory.loops=last every loop sees what is "
            "remembered of the last one; use kv=last, or leave it out"
        )
    return text


def _unknown(text: str | None) -> UserError:
    return UserError(
        f"KV policy {text!r} is not known; use {POLICIES} with K of at least 1, e.g. ring:4, and `,bf16` or `,int8` "
        "behind it for a smaller one"
    )
