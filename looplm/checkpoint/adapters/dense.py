"""Llama, Qwen3, OLMo 2 and Nanbeige, dense decoders, in the names of the library transformers (5.23.0).

The first three are a LoopLM whose block is the whole stack and runs once; a Nanbeige (arXiv 2607.22083) is the stack of
a Llama that runs `num_loops` times. What a key means when it is missing is that library's default.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import PositiveInt, model_validator

from looplm.checkpoint.adapters.base import Official, vector
from looplm.checkpoint.adapters.config import only, other_model
from looplm.checkpoint.adapters.hugging_face import FORM, DecoderConfig, attention, described, ends
from looplm.checkpoint.adapters.hugging_face import dense as swiglu
from looplm.checkpoint.adapters.window import WindowConfig
from looplm.checkpoint.adapters.window import described as described_window
from looplm.config.schema import FinalCrossEntropy, Loop, Model, NormalInit

OBJECTIVE = FinalCrossEntropy()
OF_NGRAMS = "of n-gram embeddings, which are refused"
OF_STREAMS = "of hyper-connections, which are refused"
OF_DEPTH_ATTENTION = "of attention over depth, which is refused"
Off = Annotated[bool, only(False)]


class LlamaConfig(DecoderConfig):
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    mlp_bias: Off = False


class Qwen3Config(WindowConfig, DecoderConfig):
    num_key_value_heads: int | None = 32
    head_dim: int | None = 128
    rms_norm_eps: float = 1e-6


class Olmo2Config(DecoderConfig):
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-5


class NanbeigeConfig(LlamaConfig):
    """Its code can do more than its released model has; what would be another model is off here."""

    WITHOUT_EFFECT: ClassVar[dict[str, str]] = LlamaConfig.WITHOUT_EFFECT | {
        "depth_attention_stride": OF_DEPTH_ATTENTION,
        "depth_attention_recent_window": OF_DEPTH_ATTENTION,
        "depth_attention_static_anchor_once": OF_DEPTH_ATTENTION,
        "emb_split_num": OF_NGRAMS,
        "emb_tp_num": OF_NGRAMS,
        "ngram_vocab_size_ratio": OF_NGRAMS,
        "ngram_mod_force_prime": OF_NGRAMS,
        "ngram_embedding_hidden_size": OF_NGRAMS,
        "ngram_fused_mode": OF_NGRAMS,
        "ngram_compressed_tokenizer": OF_NGRAMS,
        "ngram_layer_downproject_size": OF_NGRAMS,
        "skip_ngram_for_input": OF_NGRAMS,
        "num_residual_streams": OF_STREAMS,
        "mhc_diff_for_loop": OF_STREAMS,
        "mhc_double_stream_position_for_loop": OF_STREAMS,
        "mhc_identity_nohresparam": OF_STREAMS,
        "mhc_sinkhorn_iterations": OF_STREAMS,
        "mhc_init_gating_factor": OF_STREAMS,
        "_flash_attn_2_enabled": FORM,
    }
    num_loops: PositiveInt = 1
    skip_loop_final_norm: bool = False
    """Whether the norm after the stack is left out between loops."""
    kv_channels: int | None = None
    """A second name of head_dim."""
    layer_types: list[Literal["full_attention"]] | None = None
    loop_loss_weights: Annotated[list[float] | None, only(None, [])] = None
    sliding_window: Annotated[int | None, only(None)] = None
    qk_layernorm: Off = False
    emb_neighbor_num: Annotated[int | None, only(None)] = None
    insert_ngram_layer_idx: Annotated[list[int] | None, only(None, [])] = None
    ngram_insert_all_layers: Off = False
    enable_double_loop_split: Off = False
    loop_middle_layers: Annotated[Any, only(None, [])] = None
    loop_share_kv: Off = False
    enable_hyper_connection: Off = False
    enable_mhc: Off = False
    enable_h_res_identity: Off = False
    enable_depth_attention: Off = False

    @model_validator(mode="after")
    def _one_head_size(self) -> Self:
        if self.kv_channels is not None and self.kv_channels != self.head_dim:
            raise other_model(f"kv_channels={self.kv_channels}: in a Nanbeige it is head_dim, {self.head_dim}")
        return self


def loop(config: DecoderConfig) -> Loop:
    return Loop(num_loops=1)


def nanbeige_loop(config: NanbeigeConfig) -> Loop:
    return Loop(num_loops=config.num_loops)


def llama(config: LlamaConfig) -> Model:
    return _model(config, num_kv_heads=config.num_key_value_heads, norm_eps=config.rms_norm_eps)


def nanbeige(config: NanbeigeConfig) -> Model:
    """The one norm stands at the end of every loop, and so before the head; or before the head alone."""
    every = not config.skip_loop_final_norm
    return llama(config).model_copy(update={"norm_at_loop_end": every, "final_norm": not every})


def qwen3(config: Qwen3Config) -> Model:
    return _model(
        config,
        num_kv_heads=config.num_key_value_heads,
        norm_eps=config.rms_norm_eps,
        qk_norm=True,
        attention_window=config.window(),
    )


def olmo2(config: Olmo2Config) -> Model:
    return _model(
        config,
        num_kv_heads=config.num_key_value_heads,
        norm_eps=config.rms_norm_eps,
        qk_norm=True,
        qk_norm_over="all_heads",
        norm_placement="output",
    )


def describe_llama(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    keys = {"model_type": "llama", "max_position_embeddings": length, "mlp_bias": False}
    return described(model, "LlamaForCausalLM") | keys


def describe_nanbeige(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    return described(model, "NanbeigeForCausalLM") | {
        "model_type": "nanbeige",
        "max_position_embeddings": length,
        "mlp_bias": False,
        "num_loops": loop.num_loops,
        "skip_loop_final_norm": not model.norm_at_loop_end,
    }


def describe_qwen3(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    keys = {"model_type": "qwen3", "max_position_embeddings": length}
    return described(model, "Qwen3ForCausalLM") | described_window(model) | keys


def describe_olmo2(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    return described(model, "Olmo2ForCausalLM") | {"model_type": "olmo2", "max_position_embeddings": length}


def _model(config: DecoderConfig, **fields: Any) -> Model:
    return Model(
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        hidden_dim=config.intermediate_size,
        block_layers=config.num_hidden_layers,
        rope=config.rope(),
        tie_embeddings=config.tie_word_embeddings,
        init=NormalInit(std=config.initializer_range),
        **fields,
    )


def tensors(model: Model) -> list[Official]:
    """Of all but OLMo 2."""
    return _tensors(model, before="input_layernorm", after="post_attention_layernorm")


def olmo2_tensors(model: Model) -> list[Official]:
    return _tensors(model, before="post_attention_layernorm", after="post_feedforward_layernorm")


def _tensors(model: Model, *, before: str, after: str) -> list[Official]:
    """before, after: names of the norms of the attention and of the feed-forward."""
    path = "core.block.layers"
    parts = {
        before: vector(f"{path}.attention_residual.norm.scale", model.dim),
        after: vector(f"{path}.feed_forward_residual.norm.scale", model.dim),
        **attention(model, path),
        **swiglu(model, path),
    }
    embeddings, last = ends(model, "core.end_norm.scale" if model.norm_at_loop_end else "final_norm.scale")
    layers = [
        Official(f"model.layers.{i}.{name}.weight", (part,), layer=i)
        for i in range(model.block_layers)
        for name, part in parts.items()
    ]
    return [embeddings, *layers, *last]
