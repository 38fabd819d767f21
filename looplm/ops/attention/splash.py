"""Attention on a TPU: JAX's splash kernel, which holds no scores and passes over blocks that the kind of the mask rules
out. Documents are compared inside the kernel."""

from contextlib import AbstractContextManager, ExitStack
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from looplm.ops.attention import residuals
from looplm.ops.attention.mask import Asked, Mask, not_plain
from looplm.ops.precision import at_least_fp32
from looplm.ops.scopes import done, needed, needed_back
from looplm.sharding.collective import on_each_device
from looplm.sharding.rules import activation_spec, num_shards
from looplm.sharding.split import Split

TILE = 128
"""Sequences are padded to whole tiles."""
LARGEST_BLOCK = 512
PADDING = -1
"""The document of padding, which sees itself alone."""


def cannot(mask: Mask, asked: Asked) -> str | None:
    """Say why the kernel does not compute this; None where it does: causal or full, documents, windows."""
    parts = num_shards("context")
    if (reason := not_plain(mask, asked)) is not None:
        return reason
    if asked.num_queries < TILE:
        return f"{asked.num_queries} queries are less than a tile of {TILE}"
    if parts > 1 and asked.num_queries % (parts * TILE):
        return f"{asked.num_queries} queries in mesh.context={parts} parts are not whole tiles of {TILE}"
    if asked.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its types are bfloat16 and float32, and these are {jnp.dtype(asked.dtype).name}"
    return None


def attention(
    q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, *, interpret: bool = False
) -> jax.Array:
    """See `api.attention`; k and v are whole on every device. interpret: run the kernel's operations one by one, on any
    device."""
    (B, S, N, _), T = q_BSNH.shape, k_BTKH.shape[1]
    kernel = _kernel(mask, N // num_shards("tensor"), S, T, interpret=interpret)
    arrays = q_BSNH, k_BTKH, v_BTKH, _documents(mask, B, S, T)
    on_device = partial(_on_device, mask.split)
    with _counted(kernel, mask, S):
        if (spec := activation_spec("batch", "sequence", "heads", "head_dim")) is None:
            return on_device(kernel, *arrays)
        # Nothing is summed over devices but the gradients of keys that several of them see; kernels do not say so.
        return on_each_device(on_device, _laid_out(kernel), *arrays, out_specs=spec, check_vma=False)


def _on_device(
    split: Split | None, kernel: kernels.SplashAttentionKernel, q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array,
    documents: kernels.SegmentIds | None,
) -> jax.Array:  # fmt: skip
    _, S, _, H = q_BSNH.shape
    if split is not None:
        # The kernel is told the places of queries, and takes keys to be in their order.
        k_BTKH, v_BTKH = map(split.in_order, (k_BTKH, v_BTKH))
        documents = None if documents is None else documents._replace(kv=split.in_order(documents.kv))

    def heads_first(x_BSNH: jax.Array) -> jax.Array:
        return jnp.pad(x_BSNH, ((0, 0), (0, -x_BSNH.shape[1] % TILE), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    def padded(documents_BS: jax.Array) -> jax.Array:
        return jnp.pad(documents_BS, ((0, 0), (0, -documents_BS.shape[1] % TILE)), constant_values=PADDING)

    if documents is not None:
        documents = kernels.SegmentIds(*map(padded, documents))
    q_BSNH = (at_least_fp32(q_BSNH) * H**-0.5).astype(q_BSNH.dtype)
    out_BNSH = jax.vmap(kernel)(*map(heads_first, (q_BSNH, k_BTKH, v_BTKH)), documents)
    assert isinstance(out_BNSH, jax.Array), "no residuals are asked for"
    return out_BNSH.transpose(0, 2, 1, 3)[:, :S]


class Local(masks.LocalMask):
    """The library's mask, which asks for every pair of blocks whether `any` and `all` is seen: most pairs are answered
    with one number, since a sequence of 131,072 tokens has 65,536 pairs."""

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Return a block, or one number for all of it."""
        rows, columns = index
        place_S, (left, right) = self.q_sequence[rows] + self.offset, self.window_size
        nearest, farthest = place_S.min() - (columns.stop - 1), place_S.max() - columns.start  # how far behind
        if (left is None or farthest <= left) and (right is None or nearest >= -right):
            return np.ones((1, 1), bool)
        if (left is not None and nearest > left) or (right is not None and farthest < -right):
            return np.zeros((1, 1), bool)
        return super().__getitem__(index)


def largest_block(length: int) -> int:
    """Return the largest block of whole tiles that divides a length."""
    return max(block for block in range(TILE, LARGEST_BLOCK + 1, TILE) if length % block == 0)


def _laid_out(kernel: kernels.SplashAttentionKernel) -> kernels.SplashAttentionKernel:
    """Give every device the part of the mask that is its queries'."""
    heads_and_queries = activation_spec("one", "sequence")
    assert heads_and_queries is not None, "there is a mesh"
    sharding = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), heads_and_queries)
    return jax.tree.map(jax.sharding.reshard, kernel, kernel.manual_sharding_spec(sharding))


def _kernel(
    mask: Mask, num_heads: int, num_queries: int, num_keys: int, *, interpret: bool
) -> kernels.SplashAttentionKernel:
    offset, parts = num_keys - num_queries, num_shards("context")
    chunks = parts if mask.split is None or not mask.split.zigzag else 2 * parts
    shape = num_queries + -num_queries % TILE, num_keys + -num_keys % TILE
    window = None if mask.window is None else mask.window - 1
    if mask.kind == "causal":
        seen: masks.Mask = Local(shape, (window, 0), offset)
    elif window is not None:
        seen = Local(shape, (window, window), offset)
    else:
        seen = masks.FullMask(shape)
    if mask.split is not None and isinstance(seen, Local):
        seen.q_sequence = mask.places(num_queries)
    # A block of queries lies in one chunk, if that is whole tiles: what is masked in it is then least.
    lengths = shape[0] // (chunks if shape[0] % (chunks * TILE) == 0 else parts), shape[1]
    q, kv = map(largest_block, lengths)
    return kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * num_heads), head_shards=1, q_seq_shards=parts, interpret=interpret,
        block_sizes=kernels.BlockSizes(q, kv, kv, q, kv, kv, q, kv), residual_checkpoint_name=residuals.NAME,
    )  # fmt: skip


def _counted(kernel: kernels.SplashAttentionKernel, mask: Mask, num_queries: int) -> AbstractContextManager:
    """Mark for the count of FLOPs which part of the kernel's grid is computed, and which of that is needed.

    Of the seven products of the backward pass three are those of the forward pass once more.
    """
    grid, sizes = kernel.fwd_mask_info.block_mask, kernel.kwargs["block_sizes"]
    assert grid is not None, "shapes are known while the kernel is traced"
    blocks = np.count_nonzero(mask.blocks(num_queries, sizes.block_q, sizes.block_kv))
    scores = blocks * sizes.block_q * sizes.block_kv
    marks = ExitStack()
    for mark in (
        done(blocks / grid.size),
        needed(num_queries * mask.mean_keys(num_queries) / scores),
        needed_back(4 / 7),
    ):
        marks.enter_context(mark)
    return marks


def _documents(mask: Mask, batch: int, num_queries: int, num_keys: int) -> kernels.SegmentIds | None:
    if mask.segments_BS is None and not num_queries % TILE and not num_keys % TILE:
        return None  # no padding either
    segments_BS = jnp.zeros((batch, num_queries), jnp.int32) if mask.segments_BS is None else mask.segments_BS
    key_segments_BT = mask.key_segments_BT
    if key_segments_BT is None:
        key_segments_BT = segments_BS if mask.segments_BS is not None else jnp.zeros((batch, num_keys), jnp.int32)
    return kernels.SegmentIds(segments_BS, key_segments_BT)
