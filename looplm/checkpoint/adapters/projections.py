"""The four projections of attention, in the names that Hugging Face's models share."""

from looplm.checkpoint.adapters.base import Part, linear
from looplm.config.schema import Model


def projections(model: Model, path: str) -> dict[str, Part]:
    """By official name in a layer; path: of our layer."""
    D, attention = model.dim, f"{path}.attention"
    N, K, H = model.num_heads, model.kv_heads, model.head_size
    return {
        "self_attn.q_proj": linear(f"{attention}.query.project.kernel", (D,), (N, H)),
        "self_attn.k_proj": linear(f"{attention}.key.project.kernel", (D,), (K, H)),
        "self_attn.v_proj": linear(f"{attention}.value.kernel", (D,), (K, H)),
        "self_attn.o_proj": linear(f"{attention}.output.kernel", (N, H), (D,)),
    }
