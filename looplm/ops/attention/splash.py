"""Attention on a TPU: JAX's splash kernel, which holds no scores and passes over blocks that the kind of the mask rules
out. Documents are compared inside the kernel."""

from contextlib import AbstractContextManager, ExitStack

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from looplm.ops.attention.mask import Mask
from looplm.ops.precision import at_least_fp32
from looplm.ops.scopes import done, needed, needed_back

TILE = 128
"""Sequences are padded to whole tiles."""
LARGEST_BLOCK = 512
PADDING = -1
"""The document of padding, which sees itself alone."""


def can(mask: Mask, num_queries: int, dtype: jax.typing.DTypeLike, *, biased: bool) -> bool:
    """Say whether the kernel computes this: causal or full, with documents and windows, and nothing else."""
    plain = mask.place_BS is None and mask.present_BT is None and mask.kind != "prefix" and not biased
    return plain and num_queries >= TILE and dtype in (jnp.float32, jnp.bfloat16)


def attention(
    q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, *, interpret: bool = False
) -> jax.Array:
    """See `api.attention`; of one device. interpret: run the kernel's operations one by one, on any device."""
    (B, S, N, H), T = q_BSNH.shape, k_BTKH.shape[1]
    past_S, past_T = -S % TILE, -T % TILE

    def heads_first(x_BSNH: jax.Array, past: int) -> jax.Array:
        return jnp.pad(x_BSNH, ((0, 0), (0, past), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    q_BNSH = heads_first((at_least_fp32(q_BSNH) * H**-0.5).astype(q_BSNH.dtype), past_S)
    k_BKTH, v_BKTH = heads_first(k_BTKH, past_T), heads_first(v_BTKH, past_T)
    kernel = _kernel(mask, N, (S + past_S, T + past_T), offset=T - S, interpret=interpret)
    with _counted(kernel, mask, S):
        out_BNSH = jax.vmap(kernel)(q_BNSH, k_BKTH, v_BKTH, _documents(mask, B, S, T))
    assert isinstance(out_BNSH, jax.Array), "no residuals are asked for"
    return out_BNSH.transpose(0, 2, 1, 3)[:, :S]


def _kernel(
    mask: Mask, num_heads: int, shape: tuple[int, int], *, offset: int, interpret: bool
) -> kernels.SplashAttentionKernel:
    window = None if mask.window is None else mask.window - 1
    if mask.kind == "causal":
        seen: masks.Mask = masks.LocalMask(shape, (window, 0), offset)
    elif window is not None:
        seen = masks.LocalMask(shape, (window, window), offset)
    else:
        seen = masks.FullMask(shape)
    q, kv = (max(b for b in range(TILE, LARGEST_BLOCK + 1, TILE) if length % b == 0) for length in shape)
    return kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * num_heads), head_shards=1, q_seq_shards=1, interpret=interpret,
        block_sizes=kernels.BlockSizes(q, kv, kv, q, kv, kv, q, kv),
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
    past_S, past_T = -num_queries % TILE, -num_keys % TILE
    if mask.segments_BS is None and not past_S and not past_T:
        return None
    segments_BS = jnp.zeros((batch, num_queries), jnp.int32) if mask.segments_BS is None else mask.segments_BS
    key_segments_BT = mask.key_segments_BT
    if key_segments_BT is None:
        key_segments_BT = segments_BS if mask.segments_BS is not None else jnp.zeros((batch, num_keys), jnp.int32)
    return kernels.SegmentIds(
        jnp.pad(segments_BS, ((0, 0), (0, past_S)), constant_values=PADDING),
        jnp.pad(key_segments_BT, ((0, 0), (0, past_T)), constant_values=PADDING),
    )
