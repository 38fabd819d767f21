"""Huginn (arXiv 2502.05171): names of seal-rg/recurrent-pretraining:recpre/raven_modeling_minimal.py."""

import math
from typing import Any

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.config.schema import (
    ConcatInjection,
    DepthScaledInit,
    FinalCrossEntropy,
    LogNormalPoissonDepth,
    Loop,
    Model,
    NormalState,
    Rope,
)

OBJECTIVE = FinalCrossEntropy()
IGNORED = ("freqs_cis",)


def model(config: dict[str, Any]) -> Model:
    prelude, block, coda = (config[f"n_layers_in_{part}"] for part in ("prelude", "recurrent_block", "coda"))
    return Model(
        vocab_size=config.get("padded_vocab_size", config["vocab_size"]),
        dim=config["n_embd"],
        num_heads=config["n_heads"],
        num_kv_heads=config.get("num_key_value_heads", config["n_heads"]),
        head_dim=config.get("head_dim"),
        hidden_dim=config["intermediate_size"],
        prelude_layers=prelude,
        block_layers=block,
        coda_layers=coda,
        qk_bias=config["qk_bias"],
        rope=Rope(theta=config["rope_base"], layout="interleaved"),
        norm_placement="sandwich_sum",
        norm_eps=config["norm_eps"],
        norm_before_coda=True,
        injection=ConcatInjection(),
        # Drawn with variance 2/(5D), then scaled like the embeddings.
        state_init=NormalState(std=math.sqrt(2 / 5)),
        tie_embeddings=config["tie_embeddings"],
        embedding_scale=math.sqrt(config["n_embd"]),
        init=DepthScaledInit(effective_depth=prelude + block * config["mean_recurrence"] + coda),
    )


def loop(config: dict[str, Any]) -> Loop:
    return Loop(
        num_loops=config["mean_recurrence"],
        depth=LogNormalPoissonDepth(),
        backprop_loops=config["mean_backprop_depth"],
    )


def tensors(model: Model) -> list[Official]:
    D, V = model.dim, model.vocab_size
    stacks = {
        "prelude": ("prelude", model.prelude_layers),
        "core_block": ("core.block", model.block_layers),
        "coda": ("coda", model.coda_layers),
    }
    return [
        Official("transformer.wte.weight", (vector("embedding.table", V, D),)),
        *(
            Official(f"transformer.{official}.{i}.{name}", parts, layer=i)
            for official, (ours, count) in stacks.items()
            for i in range(count)
            for name, parts in _layer(model, f"{ours}.layers").items()
        ),
        # Our kernel is (2, in, out) with halves [state, input]; theirs is (out, 2 in).
        Official("transformer.adapter.weight", (Part("core.injection.linear.kernel", (2, 0, 1), (D, 2 * D)),)),
        Official("transformer.ln_f.weight", (vector("final_norm.scale", D),)),
        *([] if model.tie_embeddings else [Official("lm_head.weight", (vector("head", V, D),))]),
    ]


def _layer(model: Model, path: str) -> dict[str, tuple[Part, ...]]:
    D, F = model.dim, model.hidden_dim
    N, K, H = model.num_heads, model.kv_heads, model.head_size
    attention, feed_forward = f"{path}.attention", f"{path}.feed_forward"
    layer = {
        "norm_1.weight": (vector(f"{path}.attention_residual.norm.scale", D),),
        "norm_2.weight": (vector(f"{path}.attention_residual.out_norm.scale", D),),
        "norm_3.weight": (vector(f"{path}.feed_forward_residual.norm.scale", D),),
        "norm_4.weight": (vector(f"{path}.feed_forward_residual.out_norm.scale", D),),
        "attn.Wqkv.weight": (
            linear(f"{attention}.query.project.kernel", (D,), (N, H)),
            linear(f"{attention}.key.project.kernel", (D,), (K, H)),
            linear(f"{attention}.value.kernel", (D,), (K, H)),
        ),
        "attn.proj.weight": (linear(f"{attention}.output.kernel", (N, H), (D,)),),
        "mlp.fc.weight": (
            linear(f"{feed_forward}.gate.kernel", (D,), (F,)),
            linear(f"{feed_forward}.up.kernel", (D,), (F,)),
        ),
        "mlp.proj.weight": (linear(f"{feed_forward}.down.kernel", (F,), (D,)),),
    }
    if model.qk_bias:
        biases = (Part(f"{attention}.{name}.bias", (0, 1), (1, 1, N, H)) for name in ("query", "key"))
        layer["attn.qk_bias"] = tuple(biases)
    return layer
