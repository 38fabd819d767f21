"""Attention on TPUs to keys that go around the devices of `context`: the splash kernel for the keys of one device.

Which blocks a device computes differs by device and by turn, while all run one program. So one table of blocks is made
for all of them, as if the queries of all devices and turns lay one after the other, of which a device takes the rows of
itself and of the turn. The kernel's own derivative knows no normaliser over more keys than it was given; so its two
passes are called by their names, which jax 0.10 and 0.12 share.
"""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as infos

from looplm.ops.attention import ring, splash
from looplm.ops.attention.mask import Kind, Mask
from looplm.ops.precision import at_least_fp32
from looplm.ops.scopes import done, needed, needed_back
from looplm.sharding.collective import on_each_device
from looplm.sharding.rules import activation_spec
from looplm.sharding.split import Split


def attention(
    q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, *, interpret: bool = False
) -> jax.Array:
    """See `api.attention` and `splash.attention`."""
    assert mask.split is not None, "on one device nothing goes around"
    table = table_of(mask.kind, mask.window, mask.num_keys, mask.split)
    part = InKernel(mask.split, table, interpret)
    spec = activation_spec("batch", "sequence", "heads", "head_dim")
    scores = table.num_computed * table.block**2
    seen = mask.num_keys * mask.mean_keys(mask.num_keys) / scores
    with done(table.num_computed / table.num_visited), needed(seen), needed_back(4 / 7):
        arrays = q_BSNH, k_BSKH, v_BSKH, mask.segments_BS
        return on_each_device(partial(_on_device, part), *arrays, out_specs=spec, check_vma=False)


def _on_device(
    part: "InKernel", q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, documents_BS: jax.Array | None
) -> jax.Array:
    q_BSNH = (at_least_fp32(q_BSNH) * q_BSNH.shape[-1] ** -0.5).astype(q_BSNH.dtype)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BSNH, k_BSKH, v_BSKH))
    return ring.attend(part, part.split.parts, q, k, v, (documents_BS, documents_BS, ())).transpose(0, 2, 1, 3)


@dataclass(frozen=True, eq=False)
class Table:
    """Which blocks of queries and keys are computed, by device and turn; numpy, known when the program is traced."""

    block: int
    """Queries, and keys, of a block."""
    sees_CC: np.ndarray
    """Whether a device sees something in a turn."""
    forward: infos.MaskInfo
    """For the forward pass and the gradient of queries: rows of all devices and turns. Without arrays: all blocks are
    computed as a whole."""
    keys: infos.MaskInfo
    """The same for the gradients of keys and values."""
    num_visited: int
    """Blocks in the forward pass, of all devices and turns."""
    num_computed: int
    """Those that the kernel does not pass over."""


@cache
def table_of(kind: Kind, window: int | None, length: int, split: Split) -> Table:
    """Make the table of a mask."""
    chunk = length // split.parts // (2 if split.zigzag else 1)
    block = splash.largest_block(chunk if chunk % splash.TILE == 0 else length // split.parts)
    turns = AllTurns(kind, window, length, split)
    if kind == "full" and window is None:
        everything, number = infos.MaskInfo(None, None, None, None, None), (length // block) ** 2
        return Table(block, turns.sees_CC, everything, everything, number, number)
    settings = {"head_shards": 1, "q_seq_shards": split.parts**2}
    whole = masks.MultiHeadMask([turns])
    forward, _ = infos.process_mask(whole, (block, block), **settings)
    keys, _ = infos.process_mask_dkv(whole, (block, block), **settings)
    computed = np.asarray(forward.block_mask)
    return Table(block, turns.sees_CC, forward, keys, computed.size, int(np.count_nonzero(computed)))


class AllTurns(masks.Mask):
    """Rows are the queries of all devices in all turns, (C C S / C), columns the keys of one device, S / C."""

    def __init__(self, kind: Kind, window: int | None, length: int, split: Split):
        C = split.parts
        self.place_Cs = split.order(length).reshape(C, -1)
        far = length if window is None else window - 1
        self.nearest, self.farthest = 0 if kind == "causal" else -far, far  # how far a key may be behind a query
        chunk_Cns = self.place_Cs.reshape(C, 2 if split.zigzag else 1, -1)
        first_Cn, last_Cn = chunk_Cns[..., 0], chunk_Cns[..., -1]
        farthest_CnCn = last_Cn[:, :, None, None] - first_Cn
        nearest_CnCn = first_Cn[:, :, None, None] - last_Cn
        sees_CC = ((farthest_CnCn >= self.nearest) & (nearest_CnCn <= self.farthest)).any(axis=(1, 3))
        device_C1, turn_C = np.arange(C)[:, None], np.arange(C)
        self.sees_CC = sees_CC[device_C1, (device_C1 - turn_C) % C]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole mask."""
        C, s = self.place_Cs.shape
        return C * C * s, s

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Return one block, which lies in the rows of one device and turn, or one number for all of it; see
        `splash.Local`."""
        rows, columns = index
        C, s = self.place_Cs.shape
        number, first = divmod(rows.start, s)
        device, turn = divmod(number, C)
        if not self.sees_CC[device, turn]:
            # The table has no room for a turn without a block. This one is never asked for: see `InKernel.sees`.
            return np.full((1, 1), first == columns.start == 0)
        q_S1 = self.place_Cs[device, first : first + rows.stop - rows.start, None]
        k_T = self.place_Cs[(device - turn) % C, columns]
        nearest, farthest = q_S1.min() - k_T.max(), q_S1.max() - k_T.min()
        if nearest >= self.nearest and farthest <= self.farthest:
            return np.ones((1, 1), bool)
        if farthest < self.nearest or nearest > self.farthest:
            return np.zeros((1, 1), bool)
        distance_ST = q_S1 - k_T
        return (distance_ST >= self.nearest) & (distance_ST <= self.farthest)


@dataclass(frozen=True)
class InKernel:
    """See `ring.Part`; queries (B, N, S, H), scaled, keys and values (B, K, S, H); about both their documents."""

    split: Split
    table: Table
    interpret: bool

    def sees(self, turn: jax.Array, about: ring.About) -> jax.Array:
        sees = jnp.asarray(self.table.sees_CC)[jax.lax.axis_index(ring.AXIS), turn]
        of_queries, of_keys, _ = about
        if of_queries is None:
            return sees

        def ends(documents_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
            chunks = documents_BS.reshape(documents_BS.shape[0], 2 if self.split.zigzag else 1, -1)
            return jnp.min(chunks, axis=-1), jnp.max(chunks, axis=-1)

        (first_q, last_q), (first_k, last_k) = ends(of_queries), ends(of_keys)
        meet = (first_q[:, :, None] <= last_k[:, None]) & (first_k[:, None] <= last_q[:, :, None])
        return sees & jnp.any(meet)

    def forward(self, turn: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, about: ring.About) -> ring.Result:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array, documents: Any) -> ring.Result:
            out, (normaliser,) = kernels._splash_attention_forward(
                self._info(self.table.forward, turn), q, k, v, documents, None, save_residuals=True,
                residual_checkpoint_name=None, **self._settings,
            )  # fmt: skip
            return out, normaliser

        out, normaliser = jax.vmap(attend)(q, k, v, _documents(about))
        # Of a block of queries whose blocks of keys were all passed over: 0 / 0, and log 0.
        passed = jnp.isneginf(normaliser)
        return jnp.where(passed[..., None], 0, at_least_fp32(out)), jnp.where(passed, ring.UNSEEN, normaliser)

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
        tables = self._info(self.table.forward, turn), self._info(self.table.keys, turn)

        def pull_back(q: jax.Array, k: jax.Array, v: jax.Array, documents: Any, result: Any, d_out: jax.Array) -> Any:
            saved = q, k, v, documents, None, *result, *tables
            return kernels._splash_attention_bwd(
                save_residuals=False, residual_checkpoint_name=None, res=saved, do=d_out, **self._settings
            )[3:6]

        d_q, d_k, d_v = jax.vmap(pull_back)(q, k, v, _documents(about), result, d_out)
        return at_least_fp32(d_q), at_least_fp32(d_k), at_least_fp32(d_v)

    @property
    def _settings(self) -> dict[str, Any]:
        b = self.table.block
        return {
            "mask_value": kernels.DEFAULT_MASK_VALUE, "is_mqa": False, "mask_function": None,
            "block_sizes": kernels.BlockSizes(b, b, b, b, b, b, b, b), "attn_logits_soft_cap": None,
            "interpret": self.interpret,
        }  # fmt: skip

    def _info(self, table: infos.MaskInfo, turn: jax.Array) -> infos.MaskInfo:
        """Take the rows of this device and turn."""
        number = jax.lax.axis_index(ring.AXIS) * self.split.parts + turn

        def rows(x: np.ndarray | jax.Array | None) -> jax.Array | None:
            if x is None:
                return None
            count = x.shape[1] // self.split.parts**2
            return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), number * count, count, axis=1)

        partial_blocks = None if table.partial_mask_blocks is None else jnp.asarray(table.partial_mask_blocks)
        return table._replace(
            data_next=rows(table.data_next), mask_next=rows(table.mask_next), block_mask=rows(table.block_mask),
            partial_mask_blocks=partial_blocks,
        )  # fmt: skip


def _documents(about: ring.About) -> kernels.SegmentIds | None:
    of_queries, of_keys, _ = about
    return None if of_queries is None else kernels.SegmentIds(of_queries, of_keys)
