"""What the decoders of Hugging Face's library transformers share: keys of the config, and names of the attention."""

from typing import Annotated, ClassVar

from looplm.checkpoint.adapters.base import Part, linear
from looplm.checkpoint.adapters.config import only
from looplm.checkpoint.adapters.rope import RotaryConfig
from looplm.config.schema import Model

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
