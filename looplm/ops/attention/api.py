"""The attention that the model calls, and which backend computes it."""

from typing import Any, Literal

import jax

from looplm.ops.attention import blockwise, dense, splash
from looplm.ops.attention.mask import Mask
from looplm.sharding.collective import lay_out, on_each_device, vary
from looplm.sharding.rules import activation_spec, splitting

Backend = Literal["dense", "blockwise", "splash"]

WORTH_BLOCKS = 128
"""From so many queries on a CPU is faster by blocks."""


def choose(mask: Mask, num_queries: int, dtype: jax.typing.DTypeLike, *, biased: bool = False) -> Backend:
    """Choose the backend of a program that is traced now, by the platform that it is for and by what is asked."""
    mesh = jax.sharding.get_abstract_mesh()
    match jax.default_backend() if mesh.empty else mesh.abstract_device.platform:
        case "cpu" if num_queries >= WORTH_BLOCKS:
            return "blockwise"
        case "tpu" if splash.can(mask, num_queries, dtype, biased=biased):
            return "splash"
        case _:
            return "dense"


def prepare(mask: Mask, num_queries: int, dtype: jax.typing.DTypeLike, *, biased: bool = False) -> Mask:
    """Do before the loops what no loop should do again; a mask that is not prepared gives the same."""
    is_dense = choose(mask, num_queries, dtype, biased=biased) == "dense"
    return mask.written_out(num_queries) if is_dense else mask.with_whole_keys()


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
    # Where the sequence is split over devices, every query needs the keys and values of all of it.
    k_BTKH, v_BTKH = (lay_out(x, "batch", "all_keys", "kv_heads", "head_dim") for x in (k_BTKH, v_BTKH))
    inputs, mask = (q_BSNH, k_BTKH, v_BTKH), mask.with_whole_keys()
    spec = activation_spec("batch", "sequence", "heads", "head_dim")
    match choose(mask, q_BSNH.shape[1], q_BSNH.dtype, biased=bias_BNST is not None):
        case "dense":
            return dense.attention(*inputs, mask, bias_BNST)
        case "splash":
            return splash.attention(*inputs, mask)
        case _ if spec is None:
            return blockwise.attention(*inputs, mask, bias_BNST)
        case _:
            mask = mask.with_places(*q_BSNH.shape[:2])
            return on_each_device(_blockwise_on_device, *inputs, mask, bias_BNST, out_specs=spec)


def _blockwise_on_device(q_BSNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, *others: Any) -> jax.Array:
    # Every device has queries of its own, and a gradient of its own for the keys that all of them see.
    k_BTKH, v_BTKH = (vary(x, {"context"} & splitting(jax.sharding.get_abstract_mesh())) for x in (k_BTKH, v_BTKH))
    return blockwise.attention(q_BSNH, k_BTKH, v_BTKH, *others)
