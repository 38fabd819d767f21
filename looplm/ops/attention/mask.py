"""Whom a token sees: a description, which every backend of the attention turns into what it needs."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.config.schema import AttentionBackend, Model
from looplm.sharding.collective import lay_out
from looplm.sharding.rules import num_shards
from looplm.sharding.split import Split

Kind = Literal["causal", "prefix", "full"]


class Asked(NamedTuple):
    """What else decides whether a backend can compute an attention."""

    num_queries: int
    """S."""
    dtype: jax.typing.DTypeLike
    """Of queries, keys and values."""
    head_dim: int
    """H."""
    biased: bool = False
    """Whether something is added to the scores."""


class Runs(NamedTuple):
    """Rows of documents by their lengths, as cuDNN takes them."""

    lengths_BM: jax.Array
    """Tokens of every document from the left, int32; -1 beyond the last."""
    fit_B: jax.Array
    """Whether a row is that: no more documents than M, and each of them in one piece."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """A token sees, of its own document, what precedes it and itself (`causal`), also every token of the prefix
    (`prefix`), or everything (`full`); a window keeps the nearest tokens."""

    kind: Kind = field(metadata={"static": True})
    window: int | None = field(metadata={"static": True})
    """A token sees so many of the last tokens, itself included; None means all."""
    num_keys: int = field(metadata={"static": True})
    """T."""
    split: Split | None = field(default=None, metadata={"static": True})
    """How queries and keys, which are the same tokens, lie on devices; None: in their order."""
    place_BS: jax.Array | None = None
    """Of every query among the keys, int32; None: see `places`."""
    key_place_BT: jax.Array | None = None
    """Of every key; None: keys lie in their order."""
    segments_BS: jax.Array | None = None
    """Documents of the queries, int32; None: one document."""
    key_segments_BT: jax.Array | None = None
    """Documents of the keys; None: those of the queries."""
    prefix_BT: jax.Array | None = None
    """True for keys of a prefix; None: there is none."""
    present_BT: jax.Array | None = None
    """False for keys that nobody sees: tokens that have left, places that are not written; None: all are there."""
    seen_BST: jax.Array | None = None
    """All of the above but `present_BT`, pair by pair, once it was written out."""
    runs: Runs | None = None
    """The documents once more, once a backend that takes lengths was prepared for."""
    backend: AttentionBackend = field(default="auto", metadata={"static": True})
    """What the user wants it computed with."""

    def written_out(self, num_queries: int) -> "Mask":
        """Writes every pair out, before the loops, so that no loop does it again."""
        if self.seen_BST is not None:
            return self
        return replace(self, seen_BST=replace(self, present_BT=None).with_whole_keys().pairs(num_queries))

    def among(self, present_BT: jax.Array | None) -> "Mask":
        """Hides the keys that are not present as well; None hides none."""
        if present_BT is None:
            return self
        return replace(self, present_BT=present_BT if self.present_BT is None else self.present_BT & present_BT)

    def dense(self, num_queries: int) -> jax.Array:
        """Returns (B or 1, S, T), True where query s sees key t."""
        whole = self.with_whole_keys()
        if self.seen_BST is None:
            return whole.pairs(num_queries)
        return self.seen_BST if whole.present_BT is None else self.seen_BST & whole.present_BT[:, None, :]

    def distances(self, num_queries: int) -> jax.Array:
        """Returns how far every key is behind every query, (B or 1, S, T) int32; negative for keys that follow it."""
        place_BS, key_place_BT = self.place_BS, self.key_place_BT
        if place_BS is None:
            place_BS = jnp.asarray(self.places(num_queries))[None]
        if key_place_BT is None:
            key_place_BT = jnp.asarray(self.key_places())[None]
        return place_BS[:, :, None] - key_place_BT[:, None, :]

    def places(self, num_queries: int) -> np.ndarray:
        """Returns where the queries are among the keys, (S,), if no array says so: they are the last ones."""
        if self.split is not None:
            assert num_queries == self.num_keys, "only whole sequences are split"
            return self.split.order(num_queries)
        return np.arange(self.num_keys - num_queries, self.num_keys, dtype=np.int32)

    def key_places(self) -> np.ndarray:
        """Returns the places of the keys, (T,), if no array says so."""
        return np.arange(self.num_keys, dtype=np.int32) if self.split is None else self.split.order(self.num_keys)

    def with_places(self, batch: int, num_queries: int, keys: str = "all_keys") -> "Mask":
        """Writes places down that follow from how the sequence is split, since a device sees only some of them.

        keys: how what is said of keys is laid out, by logical axis.
        """
        if self.split is None and num_shards("context") == 1:
            return self
        place_BS, key_place_BT = self.place_BS, self.key_place_BT
        if place_BS is None:
            place_BS = jnp.broadcast_to(self.places(num_queries), (batch, num_queries))
        if key_place_BT is None and self.split is not None:
            key_place_BT = jnp.broadcast_to(self.key_places(), (batch, self.num_keys))
        place_BS = lay_out(place_BS, "batch", "sequence")
        return replace(self, split=None, place_BS=place_BS, key_place_BT=key_place_BT).with_keys(keys)

    def mean_keys(self, num_queries: int) -> float:
        """Returns how many keys a query sees on average in one document without a prefix. Queries with places of their
        own count as queries at all places."""
        place_S = self.places(num_queries) if self.place_BS is None else self.key_places()
        window = self.num_keys if self.window is None else self.window
        past_S, future_S = np.minimum(place_S + 1, window), np.minimum(self.num_keys - 1 - place_S, window - 1)
        return float(np.mean(past_S + (future_S if self.kind == "full" else 0)))

    def blocks(self, num_queries: int, queries: int, keys: int) -> np.ndarray:
        """Returns which blocks of queries and of keys, these in their order, may see something, by the kind and the
        window alone: bool (blocks of so many queries, blocks of so many keys)."""
        starts_S, starts_T = np.arange(0, num_queries, queries), np.arange(0, self.num_keys, keys)
        sees = np.ones((starts_S.size, starts_T.size), bool)
        if self.place_BS is not None:
            return sees
        place_S = self.places(num_queries)
        first_S1 = np.minimum.reduceat(place_S, starts_S)[:, None]
        last_S1 = np.maximum.reduceat(place_S, starts_S)[:, None]
        nearest, farthest = first_S1 - (starts_T + keys - 1), last_S1 - starts_T  # how far keys are behind queries
        if self.kind == "causal":
            sees &= farthest >= 0
        if self.window is not None:
            sees &= (nearest < self.window) & (-farthest < self.window)
        return sees

    def with_whole_keys(self) -> "Mask":
        """Lays out what is said of keys: whole where the sequence of the queries is split over devices."""
        return self.with_keys("all_keys")

    def with_keys(self, axis: str) -> "Mask":
        """Lays out what is said of keys."""
        key_segments_BT = self.segments_BS if self.key_segments_BT is None else self.key_segments_BT
        key_segments_BT, prefix_BT, present_BT, key_place_BT = (
            None if x_BT is None else lay_out(x_BT, "batch", axis)
            for x_BT in (key_segments_BT, self.prefix_BT, self.present_BT, self.key_place_BT)
        )
        return replace(
            self, key_segments_BT=key_segments_BT, prefix_BT=prefix_BT, present_BT=present_BT, key_place_BT=key_place_BT
        )

    def pairs(self, num_queries: int) -> jax.Array:
        """Returns the same as `dense`, on one device: all that is said of keys is there."""
        distance_BST = self.distances(num_queries)
        seen_BST = jnp.ones((1, num_queries, self.num_keys), bool)
        if self.segments_BS is not None:
            assert self.key_segments_BT is not None, "see with_whole_keys"
            seen_BST = self.segments_BS[:, :, None] == self.key_segments_BT[:, None, :]
        if self.kind != "full":
            past_BST = distance_BST >= 0
            if self.kind == "prefix" and self.prefix_BT is not None:
                past_BST = past_BST | self.prefix_BT[:, None, :]
            seen_BST = seen_BST & past_BST
        if self.window is not None:
            seen_BST = seen_BST & (jnp.abs(distance_BST) < self.window)
        return seen_BST if self.present_BT is None else seen_BST & self.present_BT[:, None, :]


def not_plain(mask: Mask, asked: Asked) -> str | None:
    """Say what no fused kernel computes; None where there is nothing of that kind."""
    if asked.biased:
        return "something is added to the scores (model.positions=relative)"
    if mask.kind == "prefix":
        return "a prefix is seen as a whole (model.attention_mask=prefix)"
    if mask.place_BS is not None or mask.present_BT is not None:
        return "keys are in a cache, or some of them have left"
    return None


def self_mask(
    config: Model, segments_BS: jax.Array, prefix_BS: jax.Array | None = None, split: Split | None = None
) -> Mask:
    """Describes the mask of whole sequences.

    Args:
        segments_BS: the document of every token.
        prefix_BS: True for tokens of a prefix; None means there is none. Only the prefix mask looks at it.
        split: how the tokens lie on devices; None: in their order.
    """
    kind, window, length = config.attention_mask, config.attention_window, segments_BS.shape[1]
    backend = config.attention_backend
    return Mask(kind, window, length, split, segments_BS=segments_BS, prefix_BT=prefix_BS, backend=backend)


def cached_mask(config: Model, positions_BS: jax.Array, cache_length: int, prompt_B: jax.Array | None = None) -> Mask:
    """Describes the mask with a cache whose slot t holds position t: a token at position p sees slots 0..p, or the last
    of them that its window, or its memory, holds; with a prefix mask also the first `prompt_B` of them."""
    backend = config.attention_backend if config.attention_backend in ("dense", "blockwise") else "auto"
    windows = [] if config.attention_window is None else [config.attention_window]
    if config.memory_length:
        windows.append(config.memory_length + 1)  # token by token, a memory of M tokens is a window of M + 1
    mask = Mask("causal", min(windows, default=None), cache_length, place_BS=positions_BS, backend=backend)
    if config.attention_mask != "prefix" or prompt_B is None:
        return mask
    return replace(mask, kind="prefix", prefix_BT=jnp.arange(cache_length) < prompt_B[:, None])
