"""Attention on a GPU of any age: JAX's Pallas-Triton kernel, which holds no scores. Documents are compared inside the
kernel; of a causal mask it passes over blocks of keys that follow. It knows no windows.

JAX means to drop Pallas-Triton some day; then this backend says that it cannot, and nothing else changes.
"""

import importlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from looplm.ops.attention import residuals
from looplm.ops.attention.mask import Asked, Mask, not_plain
from looplm.ops.scopes import done, needed, needed_back
from looplm.sharding.collective import on_each_device
from looplm.sharding.rules import activation_spec, num_shards

LEAST, LARGEST_BLOCK, LARGEST_BLOCK_BACK = 16, 128, 32
"""Tensor cores take 16 rows at least; JAX's own sizes, which are those that its tests run."""
BLOCK_BYTES = 2**14
"""Of queries, or of keys: a few of them fit the shared memory of every GPU since 2018."""
LARGEST_HEAD = 128
TYPES = ("bfloat16", "float16", "float32")
PADDING = -1
"""The document of padding, which sees itself alone."""


class Plan(NamedTuple):
    """What is known when the program is traced."""

    causal: bool
    block: int
    block_back: int
    seen: float
    """Scores of a sequence that are not masked, in one document."""
    keeps: bool
    """Whether what the backward pass needs is named, and so kept where a layer is recomputed."""
    interpret: bool


def cannot(mask: Mask, asked: Asked) -> str | None:
    """Say why the kernel does not compute this; None where it does: causal or full, with documents."""
    if (reason := not_itself(mask, asked)) is not None:
        return reason
    if mask.window is not None:
        return f"it knows no windows (model.attention_window={mask.window})"
    if not LEAST <= asked.head_dim <= LARGEST_HEAD:
        return f"its heads have {LEAST} to {LARGEST_HEAD} dims, and these have {asked.head_dim}"
    if jnp.dtype(asked.dtype).name not in TYPES:
        return f"its types are {', '.join(TYPES)}, and these are {jnp.dtype(asked.dtype).name}"
    return None if _kernels() else f"jax {jax.__version__} has it no more"


def not_itself(mask: Mask, asked: Asked) -> str | None:
    """Say why this is not what kernels for GPUs compute: a whole sequence that looks at itself, on one device."""
    if (reason := not_plain(mask, asked)) is not None:
        return reason
    if mask.num_keys != asked.num_queries or mask.key_segments_BT is not None:
        return f"{asked.num_queries} queries see {mask.num_keys} keys that are not theirs"
    if asked.num_queries < LARGEST_BLOCK:
        return f"{asked.num_queries} queries are less than a block of {LARGEST_BLOCK}"
    if num_shards("context") > 1 or mask.split is not None:
        return f"the sequence is split over devices (mesh.context={num_shards('context')})"
    return None


def attention(
    q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, *, interpret: bool = False
) -> jax.Array:
    """See `api.attention`. interpret: run the kernel's operations one by one, on any device."""
    arrays, function = (q_BSNH, k_BSKH, v_BSKH, mask), partial(on_device, interpret=interpret)
    if (spec := activation_spec("batch", "sequence", "heads", "head_dim")) is None:
        return function(*arrays)
    return on_each_device(function, *arrays, out_specs=spec, check_vma=False)


def on_device(
    q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, *, keeps: bool = True, interpret: bool = False
) -> jax.Array:
    """Pad to whole blocks, repeat keys and values for the queries of their group, and attend, on one device.

    keeps: name what the backward pass needs, so that it is kept where a layer is recomputed.
    """
    (B, S, N, _), segments_BS = q_BSNH.shape, mask.segments_BS
    plan = _plan(mask, S, q_BSNH, keeps=keeps, interpret=interpret)
    past = -S % plan.block
    if segments_BS is None and past and not plan.causal:
        segments_BS = jnp.zeros((B, S), jnp.int32)  # who sees all would see the padding

    def padded(x_BSNH: jax.Array) -> jax.Array:
        x_BSNH = jnp.repeat(x_BSNH, N // x_BSNH.shape[2], axis=2)
        return jnp.pad(x_BSNH, ((0, 0), (0, past), (0, 0), (0, 0)))

    if segments_BS is not None:
        segments_BS = jnp.pad(segments_BS.astype(jnp.int32), ((0, 0), (0, past)), constant_values=PADDING)
    return _attend(plan, *map(padded, (q_BSNH, k_BSKH, v_BSKH)), segments_BS)[:, :S]


def _plan(mask: Mask, length: int, q_BSNH: jax.Array, *, keeps: bool, interpret: bool) -> Plan:
    """Choose blocks that fit the shared memory: heads are padded to a power of two there."""
    row_bytes = 2 ** math.ceil(math.log2(q_BSNH.shape[-1])) * q_BSNH.dtype.itemsize
    block = max(LEAST, min(LARGEST_BLOCK, 2 ** int(math.log2(BLOCK_BYTES / row_bytes))))
    back, seen = min(block, LARGEST_BLOCK_BACK), length * mask.mean_keys(length)
    return Plan(mask.kind == "causal", block, back, seen, keeps, interpret)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: Plan, q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segments_BS: jax.Array | None
) -> jax.Array:
    return _forward(plan, q_BSNH, k_BSNH, v_BSNH, segments_BS)[0]


def _forward(plan: Plan, *arrays: Any) -> tuple[jax.Array, tuple]:
    with _counted(plan, arrays[0].shape[1], plan.block):
        out_BSNH, normaliser_BNS = _kernels().mha(*arrays, **_options(plan, arrays[0]), return_residuals=True)
    if plan.keeps:
        out_BSNH, normaliser_BNS = (checkpoint_name(x, residuals.NAME) for x in (out_BSNH, normaliser_BNS))
    return out_BSNH, (*arrays, out_BSNH, normaliser_BNS)


def _backward(plan: Plan, saved: tuple, d_out_BSNH: jax.Array) -> tuple:
    options = _options(plan, d_out_BSNH)
    # Of its seven products three are the forward pass's, or done twice.
    with _counted(plan, d_out_BSNH.shape[1], plan.block_back), needed_back(4 / 7):
        return _kernels().mha.bwd(
            options["sm_scale"], options["causal"], options["block_sizes"], "triton", None, 2, None, plan.interpret,
            False, False, saved, d_out_BSNH,
        )  # fmt: skip


_attend.defvjp(_forward, _backward)


def _options(plan: Plan, q_BSNH: jax.Array) -> dict[str, Any]:
    back = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), plan.block_back)
    sizes = _kernels().BlockSizes(block_q=plan.block, block_k=plan.block, **back)
    scale = q_BSNH.shape[-1] ** -0.5
    return dict(sm_scale=scale, causal=plan.causal, block_sizes=sizes, interpret=plan.interpret)


@contextmanager
def _counted(plan: Plan, length: int, block: int) -> Iterator[None]:
    """Mark for the count of FLOPs how often a causal kernel's loop over blocks turns on average (another loop has a
    length that is read off the program), and which part of that is needed."""
    turns = (length / block + 1) / 2 if plan.causal else length / block
    with done(turns if plan.causal else 1), needed(plan.seen / (length * turns * block)):
        yield


@cache
def _kernels() -> Any:
    """Import the kernel where it is used: newer versions of JAX warn of it. None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
        except ImportError:
            return None
