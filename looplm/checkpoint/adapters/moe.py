"""Mixtral, OLMoE and Qwen3-MoE: unlooped models with experts, in the names of the library transformers (4.54.1).

Each is a LoopLM whose block is the whole stack and runs once. They differ in the names of a layer's parts and of a few
config keys; what a key means when it is missing is that library's default.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.checkpoint.adapters.config import only, other_model
from looplm.checkpoint.adapters.hugging_face import DecoderConfig, attention, described, ends
from looplm.config.schema import Balance, FinalCrossEntropy, Loop, Model, MoE, NormalInit
from looplm.errors import UserError

OBJECTIVE = FinalCrossEntropy()


class ExpertsConfig(DecoderConfig):
    num_experts_per_tok: int
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    rms_norm_eps: float = 1e-5


class MixtralConfig(ExpertsConfig):
    THETA: ClassVar[float] = 1e6
    num_local_experts: int
    num_key_value_heads: int | None = 8
    sliding_window: int | None = None
    router_jitter_noise: Annotated[float, only(0.0)] = 0.0


class OlmoeConfig(ExpertsConfig):
    num_experts: int
    num_key_value_heads: int | None = None
    router_aux_loss_coef: float = 0.01
    norm_topk_prob: bool = False
    clip_qkv: Annotated[float | None, only(None)] = None

    @model_validator(mode="after")
    def _equal_heads(self) -> Self:
        """The official code does not read head_dim."""
        if self.head_dim is not None and self.head_dim * self.num_attention_heads != self.hidden_size:
            raise other_model(
                f"head_dim={self.head_dim}: an OLMoE has hidden_size / num_attention_heads = "
                f"{self.hidden_size} / {self.num_attention_heads}"
            )
        return self


class Qwen3MoeConfig(ExpertsConfig):
    num_hidden_layers: Annotated[int, Field(le=100_000)]
    """The layers are gone through here, so a forged number must not last."""
    num_experts: int
    num_key_value_heads: int | None = 4
    rms_norm_eps: float = 1e-6
    moe_intermediate_size: int
    decoder_sparse_step: PositiveInt = 1
    mlp_only_layers: list[int] | None = None
    norm_topk_prob: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int | None = None

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        if self.use_sliding_window and self.sliding_window is not None and (self.max_window_layers or 0) > 0:
            raise other_model(
                f"max_window_layers={self.max_window_layers} with use_sliding_window=True: versions of transformers "
                "disagree on which layers have the window; looplm has one for all, which max_window_layers=0 says"
            )
        return self

    @model_validator(mode="after")
    def _some_experts(self) -> Self:
        if len(self.dense_layers()) == self.num_hidden_layers:
            raise other_model(
                f"decoder_sparse_step={self.decoder_sparse_step} and mlp_only_layers={self.mlp_only_layers or []} "
                f"leave none of {self.num_hidden_layers} layers with experts; that is a dense Qwen3, and no mixture of "
                "experts"
            )
        return self

    def dense_layers(self) -> tuple[int, ...]:
        dense, step = self.mlp_only_layers or (), self.decoder_sparse_step
        return tuple(i for i in range(self.num_hidden_layers) if i in dense or (i + 1) % step)


def loop(config: ExpertsConfig) -> Loop:
    return Loop(num_loops=1)


def mixtral(config: MixtralConfig) -> Model:
    moe = _experts(config, config.num_local_experts)
    return _model(config, moe, num_kv_heads=config.num_key_value_heads, attention_window=config.sliding_window)


def olmoe(config: OlmoeConfig) -> Model:
    moe = _experts(config, config.num_experts, renormalise=config.norm_topk_prob)
    return _model(config, moe, num_kv_heads=config.num_key_value_heads, qk_norm=True, qk_norm_over="all_heads")


def qwen3_moe(config: Qwen3MoeConfig) -> Model:
    moe = _experts(
        config,
        config.num_experts,
        renormalise=config.norm_topk_prob,
        expert_dim=config.moe_intermediate_size,
        dense_layers=config.dense_layers(),
    )
    return _model(
        config,
        moe,
        num_kv_heads=config.num_key_value_heads,
        qk_norm=True,
        attention_window=config.sliding_window if config.use_sliding_window else None,
    )


def _experts(config: ExpertsConfig, num_experts: int, **fields: Any) -> MoE:
    """The balance loss is part of the official loss where the config asks for the router's logits."""
    return MoE(
        num_experts=num_experts,
        experts_per_token=config.num_experts_per_tok,
        balance=Balance(
            auxiliary_weight=config.router_aux_loss_coef if config.output_router_logits else 0.0,
            auxiliary_over="model",
        ),
        **fields,
    )


def _model(config: ExpertsConfig, moe: MoE, **fields: Any) -> Model:
    return Model(
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        hidden_dim=config.intermediate_size,
        block_layers=config.num_hidden_layers,
        feed_forward=moe,
        rope=config.rope(),
        norm_eps=config.rms_norm_eps,
        tie_embeddings=config.tie_word_embeddings,
        init=NormalInit(std=config.initializer_range),
        **fields,
    )


def describe_mixtral(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    moe = _moe(model)
    return _described(model, moe, "MixtralForCausalLM", length) | {
        "model_type": "mixtral",
        "intermediate_size": moe.expert_dim or model.hidden_dim,
        "num_local_experts": moe.num_experts,
        "sliding_window": model.attention_window,
        "router_jitter_noise": 0.0,
    }


def describe_olmoe(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    moe = _moe(model)
    return _described(model, moe, "OlmoeForCausalLM", length) | {
        "model_type": "olmoe",
        "intermediate_size": moe.expert_dim or model.hidden_dim,
        "num_experts": moe.num_experts,
        "norm_topk_prob": moe.renormalise,
        "clip_qkv": None,
    }


def describe_qwen3_moe(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    moe, window = _moe(model), model.attention_window
    return _described(model, moe, "Qwen3MoeForCausalLM", length) | {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": moe.expert_dim or model.hidden_dim,
        "num_experts": moe.num_experts,
        "norm_topk_prob": moe.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(moe.dense_layers),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": 0,
    }


def _moe(model: Model) -> MoE:
    if not isinstance(model.feed_forward, MoE):
        raise UserError(f"model.feed_forward={model.feed_forward.kind} has no experts")
    return model.feed_forward


def _described(model: Model, moe: MoE, architecture: str, length: int) -> dict[str, Any]:
    """What the three have in common. The balance loss is that over the whole model, or off."""
    weighs = moe.balance.auxiliary_over == "model" and moe.balance.auxiliary_weight > 0
    return described(model, architecture) | {
        "max_position_embeddings": length,
        "num_experts_per_tok": moe.experts_per_token,
        "output_router_logits": weighs,
        "router_aux_loss_coef": moe.balance.auxiliary_weight if weighs else 0.001,
    }


def mixtral_tensors(model: Model) -> list[Official]:
    return _tensors(model, "block_sparse_moe", {"w1": "gate", "w3": "up", "w2": "down"})


def hf_tensors(model: Model) -> list[Official]:
    """Of OLMoE and Qwen3-MoE."""
    return _tensors(model, "mlp", {f"{name}_proj": name for name in ("gate", "up", "down")})


def _tensors(model: Model, mlp: str, kernels: dict[str, str]) -> list[Official]:
    moe, D = model.feed_forward, model.dim
    assert isinstance(moe, MoE)
    named, seen = [], {"layers": 0, "dense_layers": 0}
    for i in range(model.block_layers):
        stack = "dense_layers" if i in moe.dense_layers else "layers"
        path, place, layer = f"core.block.{stack}", seen[stack], f"model.layers.{i}"
        seen[stack] += 1
        parts = {
            "input_layernorm": vector(f"{path}.attention_residual.norm.scale", D),
            "post_attention_layernorm": vector(f"{path}.feed_forward_residual.norm.scale", D),
            **attention(model, path),
        }
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
    embeddings, after = ends(model, "final_norm.scale")
    return [embeddings, *named, *after]


def _kernel(path: str, role: str, D: int, F: int) -> Part:
    return linear(path, (F,), (D,)) if role == "down" else linear(path, (D,), (F,))
