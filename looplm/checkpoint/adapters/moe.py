"""Mixtral, OLMoE and Qwen3-MoE: unlooped models with experts, in the names of the library transformers (4.54.1).

Each is a LoopLM whose block is the whole stack and runs once. They differ in the names of a layer's parts and of a few
config keys; what a key means when it is missing is that library's default.
"""

from typing import Any

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.checkpoint.adapters.projections import projections
from looplm.checkpoint.adapters.rope import rope
from looplm.config.schema import Balance, FinalCrossEntropy, Loop, Model, MoE, NormalInit
from looplm.errors import UserError

OBJECTIVE = FinalCrossEntropy()


def loop(config: dict[str, Any]) -> Loop:
    return Loop(num_loops=1)


def mixtral(config: dict[str, Any]) -> Model:
    _refuse(config, hidden_act="silu")
    moe = _experts(config, config["num_local_experts"], coefficient=0.001)
    return _model(
        config, moe, eps=1e-5, theta=1e6, num_kv_heads=config.get("num_key_value_heads", 8),
        attention_window=config.get("sliding_window"),
    )  # fmt: skip


def olmoe(config: dict[str, Any]) -> Model:
    _refuse(config, hidden_act="silu", attention_bias=False, clip_qkv=None)
    renormalise = config.get("norm_topk_prob", False)
    moe = _experts(config, config["num_experts"], coefficient=0.01, renormalise=renormalise)
    return _model(
        config, moe, eps=1e-5, theta=1e4, num_kv_heads=config.get("num_key_value_heads"), qk_norm=True,
        qk_norm_over="all_heads",
    )  # fmt: skip


def qwen3_moe(config: dict[str, Any]) -> Model:
    _refuse(config, hidden_act="silu", attention_bias=False)
    step, dense_only = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    num_layers = config["num_hidden_layers"]
    dense = tuple(i for i in range(num_layers) if i in dense_only or (i + 1) % step)
    moe = _experts(
        config, config["num_experts"], coefficient=0.001, renormalise=config.get("norm_topk_prob", False),
        expert_dim=config["moe_intermediate_size"], dense_layers=dense,
    )  # fmt: skip
    if len(dense) == num_layers:
        raise UserError(
            f"decoder_sparse_step={step} and mlp_only_layers={list(dense_only)} leave none of {num_layers} layers with "
            "experts; that is a dense Qwen3, and no mixture of experts"
        )
    return _model(
        config, moe, eps=1e-6, theta=1e4, num_kv_heads=config.get("num_key_value_heads", 4), qk_norm=True,
        attention_window=config.get("sliding_window") if config.get("use_sliding_window") else None,
    )  # fmt: skip


def _experts(config: dict[str, Any], num_experts: int, coefficient: float, **fields: Any) -> MoE:
    """The balance loss is part of the official loss where the config asks for the router's logits."""
    weight = config.get("router_aux_loss_coef", coefficient) if config.get("output_router_logits") else 0.0
    return MoE(
        num_experts=num_experts,
        experts_per_token=config["num_experts_per_tok"],
        balance=Balance(auxiliary_weight=weight, auxiliary_over="model"),
        **fields,
    )


def _model(config: dict[str, Any], moe: MoE, *, eps: float, theta: float, **fields: Any) -> Model:
    return Model(
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config.get("head_dim"),
        hidden_dim=config["intermediate_size"],
        block_layers=config["num_hidden_layers"],
        feed_forward=moe,
        rope=rope(config, theta),
        norm_eps=config.get("rms_norm_eps", eps),
        tie_embeddings=config.get("tie_word_embeddings", False),
        init=NormalInit(std=config.get("initializer_range", 0.02)),
        **fields,
    )


def _refuse(config: dict[str, Any], **known: Any) -> None:
    """Raises UserError for a setting that no released model has."""
    wrong = [f"{key}={config[key]!r}" for key, value in known.items() if config.get(key, value) != value]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: looplm cannot read this; it knows {known}")


def mixtral_tensors(model: Model) -> list[Official]:
    return _tensors(model, "block_sparse_moe", {"w1": "gate", "w3": "up", "w2": "down"})


def hf_tensors(model: Model) -> list[Official]:
    """Of OLMoE and Qwen3-MoE."""
    return _tensors(model, "mlp", {f"{name}_proj": name for name in ("gate", "up", "down")})


def _tensors(model: Model, mlp: str, kernels: dict[str, str]) -> list[Official]:
    moe, D, V = model.feed_forward, model.dim, model.vocab_size
    assert isinstance(moe, MoE)
    named, seen = [], {"layers": 0, "dense_layers": 0}
    for i in range(model.block_layers):
        stack = "dense_layers" if i in moe.dense_layers else "layers"
        path, place, layer = f"core.block.{stack}", seen[stack], f"model.layers.{i}"
        seen[stack] += 1
        parts = _attention(model, path)
        feed_forward, F = f"{path}.feed_forward", moe.expert_dim or model.hidden_dim
        if stack == "dense_layers":
            parts |= {
                f"{mlp}.{theirs}": _kernel(f"{feed_forward}.{ours}.kernel", ours, D, model.hidden_dim)
                for theirs, ours in kernels.items()
            }
        else:
            parts[f"{mlp}.gate"] = linear(f"{feed_forward}.router.kernel", (D,), (moe.num_experts,))
            named += [
                Official(
                    f"{layer}.{mlp}.experts.{e}.{theirs}.weight",
                    (_kernel(f"{feed_forward}.experts.{ours}", ours, D, F),),
                    layer=(place, e),
                )
                for e in range(moe.num_experts)
                for theirs, ours in kernels.items()
            ]
        named += [Official(f"{layer}.{name}.weight", (part,), layer=place) for name, part in parts.items()]
    return [
        Official("model.embed_tokens.weight", (vector("embedding.table", V, D),)),
        *named,
        Official("model.norm.weight", (vector("final_norm.scale", D),)),
        *([] if model.tie_embeddings else [Official("lm_head.weight", (vector("head", V, D),))]),
    ]


def _kernel(path: str, role: str, D: int, F: int) -> Part:
    return linear(path, (F,), (D,)) if role == "down" else linear(path, (D,), (F,))


def _attention(model: Model, path: str) -> dict[str, Part]:
    N, K, H = model.num_heads, model.kv_heads, model.head_size
    parts = {
        "input_layernorm": vector(f"{path}.attention_residual.norm.scale", model.dim),
        "post_attention_layernorm": vector(f"{path}.feed_forward_residual.norm.scale", model.dim),
        **projections(model, path),
    }
    if model.qk_norm:
        for name, heads, ours in (("q_norm", N, "query"), ("k_norm", K, "key")):
            scale = f"{path}.attention.{ours}.norm.scale"
            together = model.qk_norm_over == "all_heads"
            parts[f"self_attn.{name}"] = Part(scale, (0, 1), (heads * H,)) if together else vector(scale, H)
    return parts
