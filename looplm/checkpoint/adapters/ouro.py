"""Ouro (arXiv 2510.25741): names of the Hugging Face code of ByteDance/Ouro."""

from typing import Any

from looplm.checkpoint.adapters.base import Official, linear, vector
from looplm.checkpoint.adapters.projections import projections
from looplm.checkpoint.adapters.rope import rope
from looplm.config.schema import ExitGate, ExpectedCrossEntropy, Loop, Model, NormalInit

OBJECTIVE = ExpectedCrossEntropy(entropy_weight=0.05)


def model(config: dict[str, Any]) -> Model:
    return Model(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim"),
        hidden_dim=config["intermediate_size"],
        block_layers=config["num_hidden_layers"],
        attention_window=config.get("sliding_window") if config.get("use_sliding_window") else None,
        rope=rope(config),
        norm_placement="sandwich",
        norm_eps=config["rms_norm_eps"],
        norm_at_loop_end=True,
        final_norm=False,
        exit_gate=ExitGate(),
        tie_embeddings=config.get("tie_word_embeddings", False),
        init=NormalInit(std=config.get("initializer_range", 0.02)),
    )


def loop(config: dict[str, Any]) -> Loop:
    return Loop(num_loops=config["total_ut_steps"])


def tensors(model: Model) -> list[Official]:
    D, F, V = model.dim, model.hidden_dim, model.vocab_size
    layers = "core.block.layers"
    per_layer = {
        "input_layernorm": vector(f"{layers}.attention_residual.norm.scale", D),
        "input_layernorm_2": vector(f"{layers}.attention_residual.out_norm.scale", D),
        "post_attention_layernorm": vector(f"{layers}.feed_forward_residual.norm.scale", D),
        "post_attention_layernorm_2": vector(f"{layers}.feed_forward_residual.out_norm.scale", D),
        **projections(model, layers),
        "mlp.gate_proj": linear(f"{layers}.feed_forward.gate.kernel", (D,), (F,)),
        "mlp.up_proj": linear(f"{layers}.feed_forward.up.kernel", (D,), (F,)),
        "mlp.down_proj": linear(f"{layers}.feed_forward.down.kernel", (F,), (D,)),
    }
    return [
        Official("model.embed_tokens.weight", (vector("embedding.table", V, D),)),
        *(
            Official(f"model.layers.{i}.{name}.weight", (part,), layer=i)
            for i in range(model.block_layers)
            for name, part in per_layer.items()
        ),
        Official("model.norm.weight", (vector("core.end_norm.scale", D),)),
        Official("model.early_exit_gate.weight", (linear("gate.kernel", (D,), (1,)),)),
        Official("model.early_exit_gate.bias", (vector("gate.bias", 1),)),
        *([] if model.tie_embeddings else [Official("lm_head.weight", (vector("head", V, D),))]),
    ]
