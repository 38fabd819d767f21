"""Attention block by block to keys that go around the devices of `context`: what one device does with one part."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from looplm.ops.attention import blockwise, ring
from looplm.ops.attention.blockwise import Blocks, Row
from looplm.ops.attention.mask import Mask
from looplm.sharding.collective import on_each_device
from looplm.sharding.rules import activation_spec, num_shards


def attention(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    """See `api.attention`; without a bias."""
    B, S = q_BSNH.shape[:2]
    needed = mask.mean_keys(S) / S
    spec = activation_spec("batch", "sequence", "heads", "head_dim")
    arrays = q_BSNH, k_BSKH, v_BSKH, mask.with_places(B, S, keys="sequence")
    return on_each_device(partial(_on_device, needed), *arrays, out_specs=spec, check_vma=False)


def _on_device(needed: float, q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    B, S = q_BSNH.shape[:2]
    mask = replace(mask, num_keys=S)  # so many at a time
    blocks = blockwise.plan(mask, S, S)._replace(needed=needed, may_be_empty=True)
    row, mask = blockwise.in_rows(blocks, q_BSNH, k_BSKH, v_BSKH), blockwise.mask_in_blocks(blocks, mask, B, S)
    about = _of_queries(mask), _of_keys(mask), ()
    out = ring.attend(InBlocks(blocks), num_shards(ring.AXIS), row.q_iKGSH, row.k_jKTH, row.v_jKTH, about)
    return blockwise.out_of_blocks(out, q_BSNH.shape)


def _of_queries(mask: Mask) -> Mask:
    return replace(mask, key_place_BT=None, key_segments_BT=None, prefix_BT=None, present_BT=None)


def _of_keys(mask: Mask) -> Mask:
    return replace(mask, place_BS=None, segments_BS=None)


@dataclass(frozen=True)
class InBlocks:
    """See `ring.Part`; all arrays have a leading dim of sequences."""

    blocks: Blocks

    def sees(self, turn: jax.Array, about: ring.About) -> jax.Array:
        """Leave it to the blocks, which are passed over one by one."""
        return jnp.bool_(True)

    def forward(self, turn: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, about: ring.About) -> ring.Result:
        rows = Row(q, k, v, None), _joined(about)
        return jax.lax.map(lambda row: blockwise.forward(self.blocks, *row), rows)

    def backward(
        self,
        turn: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        about: ring.About,
        result: ring.Result,
        d_out: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows = Row(q, k, v, None), _joined(about), *result, d_out
        gradient = jax.lax.map(lambda row: blockwise.backward(self.blocks, *row), rows)
        return gradient.q_iKGSH, gradient.k_jKTH, gradient.v_jKTH


def _joined(about: ring.About) -> Mask:
    of_queries, of_keys, _ = about
    return replace(of_keys, place_BS=of_queries.place_BS, segments_BS=of_queries.segments_BS)
