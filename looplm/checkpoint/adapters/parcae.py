"""Parcae (arXiv 2604.12946): names of sandyresearch/parcae:parcae_lm/models/parcae/parcae.py."""

import math
from typing import Any

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.config.schema import (
    DiagonalInjection,
    FinalCrossEntropy,
    Loop,
    Model,
    NormalState,
    OrthogonalInit,
    PoissonDepth,
    ReadOut,
    Rope,
    SquaredReLU,
    ValueEmbedding,
)
from looplm.errors import UserError

OBJECTIVE = FinalCrossEntropy()
IGNORED = ("freqs_cis",)
EVERY, GATE_CHANNELS = 2, 32
PUBLISHED = {
    "block_class_name": "TransformerPreNormBlock",
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "ReLU2",
    "injection_type": "diagonal",
    "state_init": "like-init",
    "init_strategy": "scaled-zero",
    "bias": False,
    "qk_bias": False,
    "clip_qkv": None,
    "mup_model_scaling_factor": 1,
    "sampling_scheme": "poisson-truncated-full",
}
"""What all released models have; other values are other models, which this file does not know."""


def model(config: dict[str, Any]) -> Model:
    wrong = [f"{key}={config[key]!r}" for key, value in PUBLISHED.items() if config.get(key, value) != value]
    stacks = {part: config[f"n_layers_in_{part}"] for part in ("prelude", "recurrent_block", "coda")}
    # The official code pairs tables and gates by the layer's number, which it counts in two ways.
    wrong += [f"n_layers_in_{part}={count}" for part, count in stacks.items() if count % EVERY]
    for key, core in (("n_embd", "embedding"), ("intermediate_size", "intermediation_embedding")):
        if (width := config[f"recurrent_{core}_dimension"]) != config[key]:
            wrong.append(f"recurrent_{core}_dimension={width}")
    if wrong:
        raise UserError(f"{', '.join(wrong)}: no released Parcae has this, and looplm cannot read it")
    return Model(
        vocab_size=config["padded_vocab_size"],
        dim=config["n_embd"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        hidden_dim=config["intermediate_size"],
        prelude_layers=stacks["prelude"],
        block_layers=stacks["recurrent_block"],
        coda_layers=stacks["coda"],
        feed_forward=SquaredReLU(scale=0.5),
        qk_norm=config["qk_norm"],
        qk_norm_scale=False,
        # from_pretrained ignores the rope_settings that are stored.
        rope=Rope(theta=50_000.0, layout="interleaved"),
        value_embedding=ValueEmbedding(every=EVERY, gate_channels=GATE_CHANNELS),
        norm_eps=config["norm_eps"],
        prelude_norm=config["prelude_norm"],
        injection=DiagonalInjection(),
        state_init=NormalState(std=math.sqrt(2 / (5 * config["n_embd"]))),
        read_out=ReadOut(),
        tie_embeddings=config["tie_embeddings"],
        logit_softcap=config["logit_softcap"],
        init=OrthogonalInit(),
    )


def loop(config: dict[str, Any]) -> Loop:
    return Loop(
        num_loops=config["mean_recurrence"],
        depth=PoissonDepth(),
        depth_per="sequence" if config["recurrent_iteration_method"] == "per-sequence" else "batch",
        backprop_loops=config["mean_backprop_depth"],
    )


def tensors(model: Model) -> list[Official]:
    D, V = model.dim, model.vocab_size
    stacks = (
        ("prelude", "prelude", "prelude", model.prelude_layers),
        ("core_block", "core.block", "block", model.block_layers),
        ("coda", "coda", "coda", model.coda_layers),
    )
    named, number = [], 0
    for official, ours, tables, count in stacks:
        for i in range(count):
            layer = f"transformer.{official}.{i}"
            named += [
                Official(f"{layer}.{name}.weight", (part,), layer=i)
                for name, part in _layer(model, f"{ours}.layers").items()
            ]
            if i % EVERY == EVERY - 1:
                gate, table = _value_embedding(model, f"{ours}.value_gates", f"value_embedding.{tables}")
                named.append(Official(f"{layer}.attn.ve_gate.weight", (gate,), layer=i // EVERY))
                named.append(Official(f"value_embeds.{number}.weight", (table,), layer=i // EVERY))
            number += 1
    singles = {
        "transformer.wte.weight": vector("embedding.table", V, D),
        "transformer.adapter.A_log": vector("core.injection.log_rate", D),
        "transformer.adapter.dt_bias": vector("core.injection.step_bias", D),
        "transformer.adapter.B": linear("core.injection.input.kernel", (D,), (D,)),
        "transformer.C.weight": linear("read_out.kernel", (D,), (D,)),
        "transformer.ln_f.weight": vector("final_norm.scale", D),
    }
    if model.prelude_norm:
        singles["transformer.ln_prelude.weight"] = vector("prelude_norm.scale", D)
    if not model.tie_embeddings:
        singles["lm_head.weight"] = vector("head", V, D)
    return named + [Official(name, (part,)) for name, part in singles.items()]


def _layer(model: Model, path: str) -> dict[str, Part]:
    D, F = model.dim, model.hidden_dim
    N, K, H = _heads(model)
    attention, feed_forward = f"{path}.attention", f"{path}.feed_forward"
    return {
        "norm_1": vector(f"{path}.attention_residual.norm.scale", D),
        "norm_2": vector(f"{path}.feed_forward_residual.norm.scale", D),
        "attn.c_q": linear(f"{attention}.query.project.kernel", (D,), (N, H)),
        "attn.c_k": linear(f"{attention}.key.project.kernel", (D,), (K, H)),
        "attn.c_v": linear(f"{attention}.value.kernel", (D,), (K, H)),
        "attn.c_proj": linear(f"{attention}.output.kernel", (N, H), (D,)),
        "mlp.fc": linear(f"{feed_forward}.up.kernel", (D,), (F,)),
        "mlp.proj": linear(f"{feed_forward}.down.kernel", (F,), (D,)),
    }


def _value_embedding(model: Model, gates: str, table: str) -> tuple[Part, Part]:
    _, K, H = _heads(model)
    return (
        linear(f"{gates}.linear.kernel", (GATE_CHANNELS,), (K,)),
        Part(table, (0, 1, 2), (model.vocab_size, K * H)),
    )


def _heads(model: Model) -> tuple[int, int, int]:
    return model.num_heads, model.kv_heads, model.dim // model.num_heads
