"""The attention that the model calls, computed by the backend that `choose` names."""

from typing import Any

import jax

from looplm.ops.attention import blockwise, blockwise_ring, cudnn, dense, splash_ring
from looplm.ops.attention.choice import KERNELS, choose
from looplm.ops.attention.mask import Asked, Mask
from looplm.sharding.collective import lay_out, on_each_device, vary
from looplm.sharding.rules import activation_spec, splitting

BY_THEMSELVES = ("triton", "cudnn")
"""Backends for whole sequences that look at themselves: the documents of the keys are those of the queries."""


def prepare(mask: Mask, asked: Asked) -> Mask:
    """Do before the loops what no loop should do again; a mask that is not prepared gives the same."""
    match "ring" if _goes_around(mask, asked) else choose(mask, asked).backend:
        case "dense":
            return mask.written_out(asked.num_queries)
        case "cudnn":
            return cudnn.with_runs(mask)
        case "triton" | "ring":
            return mask
        case _:
            return mask.with_whole_keys()


def attention(
    q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: Mask, bias_BNST: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(H) + bias) v with N / K query heads per key/value head; softmax in float32 at least.

    Args:
        mask: whom a query sees. One that sees nothing gives finite numbers without meaning.
        bias_BNST: added to the scaled scores.

    Returns:
        (B, S, N, H).
    """
    asked = Asked(q_BSNH.shape[1], q_BSNH.dtype, q_BSNH.shape[-1], bias_BNST is not None)
    backend = choose(mask, asked).backend
    if _goes_around(mask, asked):
        return (splash_ring if backend == "splash" else blockwise_ring).attention(q_BSNH, k_BTKH, v_BTKH, mask)
    # Where the sequence is split over devices, every query needs the keys and values of all of it.
    k_BTKH, v_BTKH = (lay_out(x, "batch", "all_keys", "kv_heads", "head_dim") for x in (k_BTKH, v_BTKH))
    inputs, spec = (q_BSNH, k_BTKH, v_BTKH), activation_spec("batch", "sequence", "heads", "head_dim")
    if backend not in BY_THEMSELVES:
        mask = mask.with_whole_keys()
    match backend:
        case "dense":
            return dense.attention(*inputs, mask, bias_BNST)
        case "splash" | "triton" | "cudnn":
            return KERNELS[backend][1].attention(*inputs, mask)
        case _ if spec is None:
            return blockwise.attention(*inputs, mask, bias_BNST)
        case _:
            mask = mask.with_places(q_BSNH.shape[0], q_BSNH.shape[1])
            return on_each_device(_blockwise_on_device, *inputs, mask, bias_BNST, out_specs=spec)


def _goes_around(mask: Mask, asked: Asked) -> bool:
    return mask.split is not None and mask.split.ring and not asked.biased


def _blockwise_on_device(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, *others: Any) -> jax.Array:
    # Every device has queries of its own, and a gradient of its own for the keys that all of them see.
    k_BTKH, v_BTKH = (vary(x, {"context"} & splitting(jax.sharding.get_abstract_mesh())) for x in (k_BTKH, v_BTKH))
    return blockwise.attention(q_BSNH, k_BTKH, v_BTKH, *others)
