"""HRM-Text (arXiv 2605.20613): keys of the library transformers (`HrmTextConfig`), names of sapientinc/HRM-Text-1B."""

from typing import Annotated, Self

from pydantic import model_validator

from looplm.checkpoint.adapters.base import Official, linear, vector
from looplm.checkpoint.adapters.config import only, other_model
from looplm.checkpoint.adapters.hugging_face import DecoderConfig
from looplm.config.schema import (
    DenseAttention,
    FinalCrossEntropy,
    InputState,
    Loop,
    Model,
    NoInjection,
    NormalInit,
    TwoSpeedCore,
)

OBJECTIVE = FinalCrossEntropy()


class HrmTextConfig(DecoderConfig):
    num_layers_per_stack: int
    """Its `num_hidden_layers` counts every call of a layer."""
    H_cycles: int
    L_cycles: int
    L_bp_cycles: list[int]
    embedding_scale: float
    prefix_lm: bool = True
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    mlp_bias: Annotated[bool, only(False)] = False

    @model_validator(mode="after")
    def _calls(self) -> Self:
        calls = self.num_layers_per_stack * self.H_cycles * (self.L_cycles + 1)
        if self.num_hidden_layers not in (calls, self.num_layers_per_stack):
            raise other_model(
                f"num_hidden_layers={self.num_hidden_layers}: it is num_layers_per_stack, or that times H_cycles * "
                f"(L_cycles + 1), {calls}"
            )
        return self


def model(config: HrmTextConfig) -> Model:
    return Model(
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        hidden_dim=config.intermediate_size,
        block_layers=config.num_layers_per_stack,
        attention=DenseAttention(output_gate=True),
        attention_mask="prefix" if config.prefix_lm else "causal",
        rope=config.rope(),
        norm="unit",
        norm_eps=config.rms_norm_eps,
        norm_at_loop_end=True,
        final_norm=False,
        embedding_scale=config.embedding_scale,
        core=TwoSpeedCore(
            inner_loops=config.L_cycles,
            inner_backprop=tuple(config.L_bp_cycles),
            high_layers=config.num_layers_per_stack,
        ),
        injection=NoInjection(),
        state_init=InputState(),
        tie_embeddings=config.tie_word_embeddings,
        init=NormalInit(std=config.initializer_range),
    )


def loop(config: HrmTextConfig) -> Loop:
    return Loop(num_loops=config.H_cycles)


def tensors(model: Model) -> list[Official]:
    D, V, F = model.dim, model.vocab_size, model.hidden_dim
    N, K, H = model.num_heads, model.kv_heads, model.head_size

    def layer(path: str) -> dict[str, tuple]:
        attention, feed_forward = f"{path}.attention", f"{path}.feed_forward"
        return {
            "attn.gqkv_proj": (
                linear(f"{attention}.gate.kernel", (D,), (N, H)),
                linear(f"{attention}.query.project.kernel", (D,), (N, H)),
                linear(f"{attention}.key.project.kernel", (D,), (K, H)),
                linear(f"{attention}.value.kernel", (D,), (K, H)),
            ),
            "attn.o_proj": (linear(f"{attention}.output.kernel", (N, H), (D,)),),
            "mlp.gate_up_proj": (
                linear(f"{feed_forward}.gate.kernel", (D,), (F,)),
                linear(f"{feed_forward}.up.kernel", (D,), (F,)),
            ),
            "mlp.down_proj": (linear(f"{feed_forward}.down.kernel", (F,), (D,)),),
        }

    head = [] if model.tie_embeddings else [Official("lm_head.weight", (vector("head", V, D),))]
    return [
        Official("model.embed_tokens.weight", (vector("embedding.table", V, D),)),
        Official("model.z_L_init", (vector("core.low_first", D),)),
        *(
            Official(f"model.{official}.layers.{i}.{name}.weight", parts, layer=i)
            for official, ours in (("L_module", "core.block"), ("H_module", "core.high_block"))
            for i in range(model.block_layers)
            for name, parts in layer(f"{ours}.layers").items()
        ),
        *head,
    ]
