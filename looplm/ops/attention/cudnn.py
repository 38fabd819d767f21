"""Attention on Hopper and newer GPUs: cuDNN's fused kernel through JAX.

It takes documents as lengths and offsets, at most so many in a row (`most_documents`). Rows of more, or of documents
that lie in pieces, are known only while a program runs; it then goes through the Pallas-Triton kernel.
"""

import importlib
import re
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from looplm.ops.attention import triton
from looplm.ops.attention.mask import Asked, Mask, Runs
from looplm.ops.scopes import done, needed_back
from looplm.sharding.collective import on_each_device
from looplm.sharding.rules import activation_spec

HOPPER = (9, 0)
"""The first compute capability whose cuDNN takes lengths and offsets."""
LARGEST_HEAD, MULTIPLE = 256, 8
TYPES = ("bfloat16", "float16")
TOKENS_OF_A_DOCUMENT, FEWEST, MOST = 128, 8, 64
"""A row has places for documents of so many tokens on average, within these bounds: every place costs a float32 a token
and head (the normaliser of the softmax), so 64 cost as much as queries of 128 dims in bfloat16."""


def cannot(mask: Mask, asked: Asked) -> str | None:
    """Say why cuDNN does not compute this here; None where it does: causal or full, with documents, or a causal window
    in one document."""
    if (reason := triton.not_itself(mask, asked)) is not None:
        return reason
    if jnp.dtype(asked.dtype).name not in TYPES:
        return f"its types are {' and '.join(TYPES)}, and these are {jnp.dtype(asked.dtype).name}"
    if asked.head_dim % MULTIPLE or asked.head_dim > LARGEST_HEAD:
        return f"its heads have a multiple of {MULTIPLE} dims up to {LARGEST_HEAD}, and these have {asked.head_dim}"
    if mask.window is not None and (mask.kind != "causal" or mask.segments_BS is not None):
        where = "documents" if mask.segments_BS is not None else "both directions"
        return f"it knows no windows within {where} (model.attention_window={mask.window})"
    if mask.segments_BS is not None and (reason := triton.cannot(mask, asked)) is not None:
        return f"rows of too many documents need triton as well, and {reason}"
    return _not_here()


def _not_here() -> str | None:
    """Say why no cuDNN of this process computes anything. JAX asks the process's own GPU while it traces, even where
    the program is for another machine."""
    if (fused := _fused()) is None:
        return f"jax {jax.__version__} keeps its kernel elsewhere"
    if (found := _capability()) is None:
        return "jax asks an NVIDIA GPU of this process what it can, and there is none"
    if found < HOPPER:
        return f"it is for Hopper and newer, and this GPU has compute capability {found[0]}.{found[1]}"
    try:
        fused.check_cudnn_version()
    except RuntimeError:
        return "cuDNN is not installed; pip install 'looplm[gpu]'"
    return None


def _capability() -> tuple[int, int] | None:
    if jax.default_backend() != "gpu":
        return None
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.local_devices()[0], "compute_capability", "")))
    return None if found is None else (int(found[1]), int(found[2]))


def with_runs(mask: Mask) -> Mask:
    """Count the documents once for all layers and loops."""
    if mask.segments_BS is None or mask.runs is not None:
        return mask
    return replace(mask, runs=runs_of(mask.segments_BS, most_documents(mask.num_keys)))


def most_documents(length: int) -> int:
    """Return M: for how many documents a row of this length has places."""
    return max(FEWEST, min(MOST, length // TOKENS_OF_A_DOCUMENT))


def runs_of(segments_BS: jax.Array, most: int) -> Runs:
    """Find the runs of equal ids in every row."""
    begins_BS = jnp.pad(segments_BS[:, 1:] != segments_BS[:, :-1], ((0, 0), (1, 0)))
    run_BS = jnp.cumsum(begins_BS, axis=1, dtype=jnp.int32)
    place_M = jnp.arange(most)
    here_BSM = run_BS[:, :, None] == place_M
    there_BM = place_M <= run_BS[:, -1:]
    lengths_BM = jnp.where(there_BM, jnp.sum(here_BSM, axis=1, dtype=jnp.int32), -1)
    id_BM = jnp.max(jnp.where(here_BSM, segments_BS[:, :, None], jnp.iinfo(jnp.int32).min), axis=1)
    again_BMM = (id_BM[:, :, None] == id_BM[:, None, :]) & there_BM[:, :, None] & there_BM[:, None, :]
    in_pieces_B = jnp.any(again_BMM & (place_M[:, None] < place_M), axis=(1, 2))
    return Runs(lengths_BM, (run_BS[:, -1] < most) & ~in_pieces_B)


def attention(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    """See `api.attention`."""
    mask = with_runs(mask)
    arrays = q_BSNH, k_BSKH, v_BSKH, mask
    if (spec := activation_spec("batch", "sequence", "heads", "head_dim")) is None:
        return _on_device(*arrays)
    return on_each_device(_on_device, *arrays, out_specs=spec, check_vma=False)


def _on_device(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    if mask.runs is None:
        window = None if mask.window is None else (mask.window - 1, 0)
        with _counted(mask, q_BSNH.shape[1]):
            return jax.nn.dot_product_attention(
                q_BSNH, k_BSKH, v_BSKH, is_causal=mask.kind == "causal", local_window_size=window,
                implementation="cudnn",
            )  # fmt: skip

    def by_documents(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
        with done(0):  # hardly ever
            return triton.on_device(q_BSNH, k_BSKH, v_BSKH, mask, keeps=False)

    return jax.lax.cond(jnp.all(mask.runs.fit_B), _by_lengths, by_documents, q_BSNH, k_BSKH, v_BSKH, mask)


def _by_lengths(q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    assert mask.runs is not None, "see with_runs"
    lengths_BM = mask.runs.lengths_BM
    tokens_BM = jnp.maximum(lengths_BM, 0)
    starts_BM = jnp.where(lengths_BM < 0, -1, jnp.cumsum(tokens_BM, axis=1) - tokens_BM)
    offsets_BM1 = jnp.pad(starts_BM, ((0, 0), (0, 1)), constant_values=-1)
    # jax 0.10.2 counts the offsets of keys in query heads, so there have to be as many of both.
    k_BSNH, v_BSNH = (jnp.repeat(x, q_BSNH.shape[2] // x.shape[2], axis=2) for x in (k_BSKH, v_BSKH))
    fused = _fused()
    padding = fused.MaskType.PADDING_CAUSAL if mask.kind == "causal" else fused.MaskType.PADDING
    with _counted(mask, q_BSNH.shape[1]):
        return fused.dot_product_attention(
            q_BSNH, k_BSNH, v_BSNH, q_seqlen=lengths_BM, kv_seqlen=lengths_BM, q_offsets=offsets_BM1,
            kv_offsets=offsets_BM1, scale=q_BSNH.shape[-1] ** -0.5, mask_type=padding,
        )  # fmt: skip


def _counted(mask: Mask, num_queries: int) -> ExitStack:
    """Mark for the count of FLOPs that what the mask rules out is not computed, and that of five products of the
    backward pass one is the forward's once more."""
    marks = ExitStack()
    for mark in (done(mask.mean_keys(num_queries) / num_queries), needed_back(4 / 5)):
        marks.enter_context(mark)
    return marks


@cache
def _fused() -> Any:
    """Return JAX's module, which is not a public one; None where it is no more."""
    try:
        return importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    except ImportError:
        return None
