"""What the decoders of Hugging Face's library transformers share: keys of the config, and names of the attention."""

from typing import Annotated, Any, ClassVar

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.checkpoint.adapters.config import only
from looplm.checkpoint.adapters.rope import RotaryConfig
from looplm.checkpoint.adapters.rope import described as described_rope
from looplm.config.schema import Model, NormalInit

CLASS = "says which class reads the folder"
STORED = "the type of the stored numbers; the compute type is that of who loads them"
IDS = "what tokens mean to a tokenizer or a generation; an embedding is looked up as any other"
OUTPUT = "what a call returns beside the logits"
FORM = "how the official code computes the same numbers"
LENGTH = "the longest sequence that the official code takes"
FIRST_VALUES = "first values; the weights are stored"

WITHOUT_EFFECT = {
    "model_type": CLASS,
    "architectures": CLASS,
    "auto_map": CLASS,
    "transformers_version": CLASS,
    "_name_or_path": CLASS,
    "torch_dtype": STORED,
    "dtype": STORED,
    "bos_token_id": IDS,
    "eos_token_id": IDS,
    "pad_token_id": IDS,
    "unk_token_id": IDS,
    "sep_token_id": IDS,
    "use_cache": FORM,
    "_attn_implementation": FORM,
    "_attn_implementation_autoset": FORM,
    "pretraining_tp": FORM,
    "output_attentions": OUTPUT,
    "output_hidden_states": OUTPUT,
    "return_dict": OUTPUT,
}
"""Of every config that the library writes."""

Dropout = Annotated[float, only(0.0, otherwise="looplm drops nothing in training; set it to 0 to load the weights")]


class DecoderConfig(RotaryConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = WITHOUT_EFFECT | {"max_position_embeddings": LENGTH}
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int | None = None
    hidden_act: Annotated[str, only("silu")] = "silu"
    attention_bias: Annotated[bool, only(False)] = False
    attention_dropout: Dropout = 0.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02


def described(model: Model, architecture: str) -> dict[str, Any]:
    """What the configs of all these decoders say of a model."""
    return {
        "architectures": [architecture],
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.hidden_dim,
        "num_hidden_layers": model.block_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": model.norm_eps,
        **described_rope(model.rope),
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init.std if isinstance(model.init, NormalInit) else 0.02,
        "use_cache": True,
    }


def attention(model: Model, path: str) -> dict[str, Part]:
    """The projections of an attention and the norms of its queries and keys, by official name in a layer; path: of our
    layer."""
    N, K, H = model.num_heads, model.kv_heads, model.head_size
    parts = projections(model, path)
    if model.qk_norm:
        for name, heads, ours in (("q_norm", N, "query"), ("k_norm", K, "key")):
            scale = f"{path}.attention.{ours}.norm.scale"
            together = model.qk_norm_over == "all_heads"
            parts[f"self_attn.{name}"] = Part(scale, (0, 1), (heads * H,)) if together else vector(scale, H)
    return parts


def dense(model: Model, path: str) -> dict[str, Part]:
    """The matrices of a SwiGLU, by official name in a layer; path: of our layer."""
    D, F, feed_forward = model.dim, model.hidden_dim, f"{path}.feed_forward"
    return {
        "mlp.gate_proj": linear(f"{feed_forward}.gate.kernel", (D,), (F,)),
        "mlp.up_proj": linear(f"{feed_forward}.up.kernel", (D,), (F,)),
        "mlp.down_proj": linear(f"{feed_forward}.down.kernel", (F,), (D,)),
    }


def ends(model: Model, norm: str) -> tuple[Official, list[Official]]:
    """(the embeddings, what follows the layers: the norm, ours of the given path, and the head)."""
    D, V = model.dim, model.vocab_size
    head = [] if model.tie_embeddings else [Official("lm_head.weight", (vector("head", V, D),))]
    embeddings = Official("model.embed_tokens.weight", (vector("embedding.table", V, D),))
    return embeddings, [Official("model.norm.weight", (vector(norm, D),)), *head]


def projections(model: Model, path: str) -> dict[str, Part]:
    """The four of an attention, by official name in a layer; path: of our layer."""
    D, attention = model.dim, f"{path}.attention"
    N, K, H = model.num_heads, model.kv_heads, model.head_size
    return {
        "self_attn.q_proj": linear(f"{attention}.query.project.kernel", (D,), (N, H)),
        "self_attn.k_proj": linear(f"{attention}.key.project.kernel", (D,), (K, H)),
        "self_attn.v_proj": linear(f"{attention}.value.kernel", (D,), (K, H)),
        "self_attn.o_proj": linear(f"{attention}.output.kernel", (N, H), (D,)),
    }
