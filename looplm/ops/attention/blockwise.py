"""Attention block by block, in plain JAX: the scores of one block of queries with one block of keys exist at a time, so
memory grows with the sequence and not with its square (online softmax, arXiv 1805.02867; by blocks, arXiv 2112.05682;
the backward pass computes the scores once more, arXiv 2205.14135).

Blocks in which no query sees a key are not computed: what the kind of the mask rules out is known when the program is
traced, and what lies in other documents is passed over while it runs.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.ops.attention.mask import Mask
from looplm.ops.precision import at_least_fp32
from looplm.ops.scopes import RECOMPUTED, needed

BLOCK = 128
"""Queries, and keys, of a block: on a CPU its scores stay in a core's cache."""
UNSEEN = -1e30
"""The score of a key that is not seen: finite, so that the difference of two of them is a number."""


class Blocks(NamedTuple):
    """Which pairs of blocks are computed; known when the program is traced."""

    queries: int
    """Queries of a block."""
    keys: int
    """Keys of a block."""
    pairs: tuple[tuple[int, int], ...]
    """(block of queries, block of keys), from 0."""
    may_be_empty: bool
    """Whether there are arrays by which a pair may turn out to see nothing."""
    needed: float
    """Which share of the scores in these pairs is not masked, in one document."""


class Row(NamedTuple):
    """What one sequence attends with, in blocks, heads first; or a gradient of it."""

    q_iKGSH: jax.Array
    """Blocks i of queries, with N = K G heads."""
    k_jKTH: jax.Array
    """Blocks j of keys."""
    v_jKTH: jax.Array
    bias_ijKGST: jax.Array | None


def attention(
    q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, bias_BNST: jax.Array | None = None
) -> jax.Array:
    """See `api.attention`; of one device."""
    blocks = plan(mask, q_BSNH.shape[1], k_BTKH.shape[1])
    rows = in_rows(blocks, q_BSNH, k_BTKH, v_BTKH, bias_BNST)
    masks = mask_in_blocks(blocks, mask, q_BSNH.shape[0], q_BSNH.shape[1])
    # One sequence after the other: its blocks fit into a cache, and it passes over blocks of its own.
    return out_of_blocks(jax.lax.map(lambda row: _attend(blocks, *row), (rows, masks)), q_BSNH.shape)


def in_rows(
    blocks: Blocks, q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, bias_BNST: jax.Array | None = None
) -> Row:
    """Cut what sequences attend with into blocks: a `Row` with a leading dim."""
    (B, S, N, H), (_, T, K, _) = q_BSNH.shape, k_BTKH.shape
    return Row(
        _in_blocks(q_BSNH.reshape(B, S, K, N // K, H), 1, blocks.queries).transpose(0, 1, 3, 4, 2, 5),
        _in_blocks(k_BTKH, 1, blocks.keys).transpose(0, 1, 3, 2, 4),
        _in_blocks(v_BTKH, 1, blocks.keys).transpose(0, 1, 3, 2, 4),
        None if bias_BNST is None else _bias_in_blocks(bias_BNST.reshape(B, K, N // K, S, T), blocks),
    )


def out_of_blocks(x_BiKGSH: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Put blocks of queries together again: (B, S, N, H), which is the shape."""
    B, S, N, H = shape
    return x_BiKGSH.transpose(0, 1, 4, 2, 3, 5).reshape(B, -1, N, H)[:, :S]


def plan(mask: Mask, num_queries: int, num_keys: int) -> Blocks:
    """Choose the blocks, and which pairs of them may see something."""
    queries, keys = _even(num_queries), _even(num_keys)
    pairs = tuple((int(i), int(j)) for i, j in np.argwhere(mask.blocks(num_queries, queries, keys)))
    may_be_empty = any(x is not None for x in (mask.place_BS, mask.segments_BS, mask.present_BT))
    seen = num_queries * mask.mean_keys(num_queries)
    return Blocks(queries, keys, pairs, may_be_empty, seen / (len(pairs) * queries * keys))


def _even(length: int) -> int:
    """As few blocks as there have to be, of one size: least padding. A multiple of 8, for the vector units."""
    return math.ceil(length / math.ceil(length / BLOCK) / 8) * 8


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: Blocks, row: Row, mask: Mask) -> jax.Array:
    return _forward(blocks, row, mask)[0]


def _forward(blocks: Blocks, row: Row, mask: Mask) -> tuple[jax.Array, tuple]:
    out, normaliser = forward(blocks, row, mask)
    out = out.astype(row.q_iKGSH.dtype)
    return out, (row, mask, out, normaliser)


def forward(blocks: Blocks, row: Row, mask: Mask) -> tuple[jax.Array, jax.Array]:
    """Attend with one row: (out (i, K, G, S, H), the logarithm of its softmax's denominator), float32 at least."""
    mask = _of_this_call(mask, row)

    def add(sums: tuple, i: jax.Array, j: jax.Array, seen_ST: jax.Array) -> tuple:
        out_KGSH, top_KGS, total_KGS = (x[i] for x in sums)
        score_KGST = _scores(row, i, j, seen_ST)
        new_top_KGS = jnp.maximum(top_KGS, jnp.max(score_KGST, axis=-1))
        weight_KGST, shrink_KGS = jnp.exp(score_KGST - new_top_KGS[..., None]), jnp.exp(top_KGS - new_top_KGS)
        v_KTH = row.v_jKTH[j]
        added_KGSH = _product("KGST,KTH->KGSH", weight_KGST.astype(v_KTH.dtype), v_KTH)
        new = (
            out_KGSH * shrink_KGS[..., None] + added_KGSH,
            new_top_KGS,
            total_KGS * shrink_KGS + jnp.sum(weight_KGST, axis=-1),
        )
        return tuple(_put(x, block, i) for x, block in zip(sums, new, strict=True))

    zeros_iKGSH = jnp.zeros_like(at_least_fp32(row.q_iKGSH))
    zeros_iKGS = zeros_iKGSH[..., 0]
    out, top, total = _over_pairs(blocks, mask, add, (zeros_iKGSH, zeros_iKGS + UNSEEN, zeros_iKGS))
    total = jnp.where(total == 0, 1, total)  # of a query all of whose blocks were passed over
    return out / total[..., None], top + jnp.log(total)


def _backward(blocks: Blocks, saved: tuple, d_out_iKGSH: jax.Array) -> tuple[Row, None]:
    row, mask, out_iKGSH, normaliser_iKGS = saved
    gradient = backward(blocks, row, mask, out_iKGSH, normaliser_iKGS, d_out_iKGSH)
    return jax.tree.map(lambda total, x: total.astype(x.dtype), gradient, row), None


def backward(
    blocks: Blocks, row: Row, mask: Mask, out_iKGSH: jax.Array, normaliser_iKGS: jax.Array, d_out_iKGSH: jax.Array
) -> Row:
    """Return the gradients of a row, float32 at least, by the results of `forward` over all keys that there are."""
    mask = _of_this_call(mask, row)
    # What the softmax takes from the gradient of all scores of a query.
    mean_iKGS = jnp.sum(at_least_fp32(d_out_iKGSH) * at_least_fp32(out_iKGSH), axis=-1)

    def add(sums: Row, i: jax.Array, j: jax.Array, seen_ST: jax.Array) -> Row:
        q_KGSH, k_KTH, v_KTH, d_out_KGSH = row.q_iKGSH[i], row.k_jKTH[j], row.v_jKTH[j], d_out_iKGSH[i]
        with jax.named_scope(RECOMPUTED):
            score_KGST = _scores(row, i, j, seen_ST)
        weight_KGST = jnp.exp(score_KGST - normaliser_iKGS[i][..., None])
        d_weight_KGST = _product("KGSH,KTH->KGST", d_out_KGSH, v_KTH)
        d_score_KGST = weight_KGST * (d_weight_KGST - mean_iKGS[i][..., None])
        d_product_KGST = (d_score_KGST * q_KGSH.shape[-1] ** -0.5).astype(q_KGSH.dtype)
        return Row(
            _put(sums.q_iKGSH, sums.q_iKGSH[i] + _product("KGST,KTH->KGSH", d_product_KGST, k_KTH), i),
            _put(sums.k_jKTH, sums.k_jKTH[j] + _product("KGST,KGSH->KTH", d_product_KGST, q_KGSH), j),
            _put(
                sums.v_jKTH,
                sums.v_jKTH[j] + _product("KGST,KGSH->KTH", weight_KGST.astype(v_KTH.dtype), d_out_KGSH),
                j,
            ),
            None if sums.bias_ijKGST is None else _put(sums.bias_ijKGST, _put(sums.bias_ijKGST[i], d_score_KGST, j), i),
        )

    zeros = jax.tree.map(lambda x: jnp.zeros_like(at_least_fp32(x)), row)
    return _over_pairs(blocks, mask, add, zeros)


_attend.defvjp(_forward, _backward)


def _of_this_call(mask: Mask, row: Row) -> Mask:
    """Make a mask look as if it came from the row. JAX takes out of a scan over layers what does not depend on the
    layer: that would be the mask of all pairs of blocks, and for every head."""
    return jax.lax.optimization_barrier((mask, row.q_iKGSH))[0]


def _over_pairs(blocks: Blocks, mask: Mask, add: Callable[..., Any], sums: Any) -> Any:
    """Call sums = add(sums, i, j, seen_ST) for every pair of blocks that sees something."""

    def visit(sums: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        i, j = pair
        seen_ST = _seen(blocks, mask, i, j)
        if not blocks.may_be_empty:
            return add(sums, i, j, seen_ST), None
        return jax.lax.cond(jnp.any(seen_ST), lambda sums: add(sums, i, j, seen_ST), lambda sums: sums, sums), None

    with needed(blocks.needed):
        return jax.lax.scan(visit, sums, tuple(np.asarray(blocks.pairs, np.int32).T))[0]


def _scores(row: Row, i: jax.Array, j: jax.Array, seen_ST: jax.Array) -> jax.Array:
    score_KGST = _product("KGSH,KTH->KGST", row.q_iKGSH[i], row.k_jKTH[j]) * row.q_iKGSH.shape[-1] ** -0.5
    if row.bias_ijKGST is not None:
        score_KGST += row.bias_ijKGST[i, j]
    return jnp.where(seen_ST, score_KGST, UNSEEN)


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """A product that is summed in float32 at least."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _put(x: jax.Array, block: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, block, i, axis=0)


def _in_blocks(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Cut an axis into blocks, the last one padded with zeros: (..., blocks, size, ...)."""
    past = -x.shape[axis] % size
    padded = jnp.pad(x, [(0, past if dim == axis else 0) for dim in range(x.ndim)])
    return padded.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _bias_in_blocks(bias_BKGST: jax.Array, blocks: Blocks) -> jax.Array:
    bias_BKGiSjT = _in_blocks(_in_blocks(bias_BKGST, 4, blocks.keys), 3, blocks.queries)
    return jnp.transpose(bias_BKGiSjT, (0, 3, 5, 1, 2, 4, 6))


def mask_in_blocks(blocks: Blocks, mask: Mask, batch: int, num_queries: int) -> Mask:
    """Spell the mask out: an array for everything that it says of one token, in blocks; padding is not present."""
    num_keys = mask.num_keys
    place_BS, present_BT, segments_BS = mask.place_BS, mask.present_BT, mask.segments_BS
    if place_BS is None:
        place_BS = jnp.broadcast_to(jnp.arange(num_keys - num_queries, num_keys), (batch, num_queries))
    if present_BT is None and num_keys % blocks.keys:
        present_BT = jnp.ones((batch, num_keys), bool)
    key_segments_BT = segments_BS if mask.key_segments_BT is None else mask.key_segments_BT

    def cut(x: jax.Array | None, size: int) -> jax.Array | None:
        return None if x is None else _in_blocks(x, 1, size)

    return replace(
        mask, num_keys=blocks.keys, place_BS=cut(place_BS, blocks.queries),
        segments_BS=cut(segments_BS, blocks.queries), key_segments_BT=cut(key_segments_BT, blocks.keys),
        key_place_BT=cut(mask.key_place_BT, blocks.keys), prefix_BT=cut(mask.prefix_BT, blocks.keys),
        present_BT=cut(present_BT, blocks.keys),
    )  # fmt: skip


def _seen(blocks: Blocks, mask: Mask, i: jax.Array, j: jax.Array) -> jax.Array:
    """Return which keys of block j the queries of block i see, (S, T); mask: of one sequence, in blocks."""

    assert mask.place_BS is not None, "see mask_in_blocks"

    def block(x: jax.Array | None, number: jax.Array) -> jax.Array | None:
        return None if x is None else x[number][None]

    # Keys in their order have their number in the block as their place.
    before = j * blocks.keys if mask.key_place_BT is None else 0
    here = replace(
        mask, place_BS=mask.place_BS[i][None] - before, key_place_BT=block(mask.key_place_BT, j),
        segments_BS=block(mask.segments_BS, i), key_segments_BT=block(mask.key_segments_BT, j),
        prefix_BT=block(mask.prefix_BT, j), present_BT=block(mask.present_BT, j),
    )  # fmt: skip
    return here.pairs(blocks.queries)[0]
