"""Huginn (arXiv 2502.05171): names of seal-rg/recurrent-pretraining:recpre/raven_modeling_minimal.py.

That file has one block, injection and first state; what its config's keys mean by other values is in the code that
trained it, recpre/model_dynamic.py. Here a key means what it means there, but for `bias`, which is the adapter's.
"""

import math
from typing import Annotated, Any, ClassVar, Self

from pydantic import model_validator

from looplm.checkpoint.adapters.base import Official, Part, linear, rotation_table, vector
from looplm.checkpoint.adapters.config import OfficialConfig, only, other_model
from looplm.checkpoint.adapters.hugging_face import CLASS, FIRST_VALUES, FORM, LENGTH, WITHOUT_EFFECT
from looplm.config.schema import (
    AddInjection,
    ConcatInjection,
    DepthScaledInit,
    FinalCrossEntropy,
    LogNormalPoissonDepth,
    Loop,
    Model,
    NormalState,
    Rope,
    StateInit,
    ZeroState,
)

OBJECTIVE = FinalCrossEntropy()
BUFFERS = {"freqs_cis": rotation_table}


class HuginnConfig(OfficialConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = WITHOUT_EFFECT | {
        "name": CLASS,
        "hf_config": CLASS,
        "n_layers": "a sum of three other keys, which are read",
        "block_size": LENGTH,
        "padding_multiple": "how the vocabulary was padded; what came of it is read",
        "init_orthogonal": FIRST_VALUES,
        "effective_expected_depth": FIRST_VALUES,
        "activation_checkpoint_impl": FORM,
        "test_time_noise_type": "of a noise that is refused",
    }
    vocab_size: int
    padded_vocab_size: int | None = None
    """Wins over vocab_size."""
    n_embd: int
    n_heads: int | None = None
    num_attention_heads: int | None = None
    """A second name of n_heads; the released configs have one of them or both."""
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int
    n_layers_in_prelude: int
    n_layers_in_recurrent_block: int
    n_layers_in_coda: int
    mean_recurrence: int
    mean_backprop_depth: int
    injection_type: Annotated[str, only("linear", "add")] = "linear"
    state_init: Annotated[str, only("like-init", "zero")] = "like-init"
    block_class_name: Annotated[str, only("SandwichBlock", "SandwichBlockSwin")] = "SandwichBlock"
    bias: bool = False
    qk_bias: bool
    norm_eps: float
    rope_base: float = 50_000.0
    tie_embeddings: bool
    tie_word_embeddings: bool | None = None
    init_values: dict[str, float] | None = None
    """Only `std` is read by the official code, for the first state."""
    architecture_class_name: Annotated[str, only("RecurrentGPT")] = "RecurrentGPT"
    norm_class_name: Annotated[str, only("RMSNorm_llama")] = "RMSNorm_llama"
    mlp_class_name: Annotated[str, only("GatedMLP")] = "GatedMLP"
    nonlin_name: Annotated[str, only("SiLU")] = "SiLU"
    init_strategy: Annotated[str, only("takase")] = "takase"
    """Others scale embeddings and logits otherwise."""
    sampling_scheme: Annotated[str, only("poisson-lognormal-filling")] = "poisson-lognormal-filling"
    test_time_noise: Annotated[float, only(0.0)] = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        heads = self.heads()
        for key, value, same, needed in (
            ("n_heads", self.n_heads, "num_attention_heads", heads),
            ("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", heads),
            ("head_dim", self.head_dim, "n_embd / num_attention_heads", self.n_embd / heads),
            ("tie_word_embeddings", self.tie_word_embeddings, "tie_embeddings", self.tie_embeddings),
        ):
            if value is not None and value != needed:
                raise other_model(f"{key}={value}: in a Huginn it is {same}, {needed}")
        if self.injection_type == "add" and self.bias:
            raise other_model("bias=True is the adapter's, and injection_type='add' has none; set it to false")
        return self

    def heads(self) -> int:
        heads = self.num_attention_heads or self.n_heads
        if not heads:
            raise other_model("has no num_attention_heads, which its kind of model needs; download it again")
        return heads

    def first_state(self) -> StateInit:
        """Drawn with variance 2/(5D) if nothing else is said, then scaled like the embeddings."""
        std = (self.init_values or {}).get("std", math.sqrt(2 / (5 * self.n_embd)))
        return ZeroState() if self.state_init == "zero" or std == 0 else NormalState(std=std * math.sqrt(self.n_embd))


def model(config: HuginnConfig) -> Model:
    prelude, block, coda = config.n_layers_in_prelude, config.n_layers_in_recurrent_block, config.n_layers_in_coda
    return Model(
        vocab_size=config.padded_vocab_size or config.vocab_size,
        dim=config.n_embd,
        num_heads=config.heads(),
        hidden_dim=config.intermediate_size,
        prelude_layers=prelude,
        block_layers=block,
        coda_layers=coda,
        qk_bias=config.qk_bias,
        rope=Rope(theta=config.rope_base, layout="interleaved"),
        norm_placement="sandwich_sum" if config.block_class_name == "SandwichBlock" else "sandwich",
        norm_eps=config.norm_eps,
        norm_before_coda=True,
        injection=AddInjection() if config.injection_type == "add" else ConcatInjection(bias=config.bias),
        state_init=config.first_state(),
        tie_embeddings=config.tie_embeddings,
        embedding_scale=math.sqrt(config.n_embd),
        init=DepthScaledInit(effective_depth=prelude + block * config.mean_recurrence + coda),
    )


def loop(config: HuginnConfig) -> Loop:
    return Loop(
        num_loops=config.mean_recurrence,
        depth=LogNormalPoissonDepth(),
        backprop_loops=config.mean_backprop_depth,
    )


def describe(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    """Its `n_layers` counts every layer once; `init_values` are read for the first state alone."""
    concat = model.injection if isinstance(model.injection, ConcatInjection) else None
    prelude, block, coda = model.prelude_layers, model.block_layers, model.coda_layers
    std = model.state_init.std / math.sqrt(model.dim) if isinstance(model.state_init, NormalState) else 0.0
    return {
        "architectures": ["RavenForCausalLM"],
        "model_type": "huginn_raven",
        "n_embd": model.dim,
        "n_heads": model.num_heads,
        "n_layers": prelude + block + coda,
        "block_size": length,
        "vocab_size": model.vocab_size,
        "padded_vocab_size": model.vocab_size,
        "padding_multiple": 1,
        "tie_embeddings": model.tie_embeddings,
        "intermediate_size": model.hidden_dim,
        "bias": concat is not None and concat.bias,
        "architecture_class_name": "RecurrentGPT",
        "block_class_name": "SandwichBlock" if model.norm_placement == "sandwich_sum" else "SandwichBlockSwin",
        "norm_class_name": "RMSNorm_llama",
        "norm_eps": model.norm_eps,
        "mlp_class_name": "GatedMLP",
        "nonlin_name": "SiLU",
        "init_strategy": "takase",
        "init_orthogonal": False,
        "state_init": "zero" if isinstance(model.state_init, ZeroState) else "like-init",
        "injection_type": "linear" if concat is not None else "add",
        "n_layers_in_prelude": prelude,
        "n_layers_in_recurrent_block": block,
        "n_layers_in_coda": coda,
        "mean_recurrence": loop.num_loops,
        "sampling_scheme": "poisson-lognormal-filling",
        "mean_backprop_depth": loop.backprop_loops or loop.num_loops,
        "qk_bias": model.qk_bias,
        "activation_checkpoint_impl": "per-iteration",
        "rope_base": model.rope.theta,
        "test_time_noise": 0.0,
        "init_values": {"std": std},
    }


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
        *_adapter(model),
        Official("transformer.ln_f.weight", (vector("final_norm.scale", D),)),
        *([] if model.tie_embeddings else [Official("lm_head.weight", (vector("head", V, D),))]),
    ]


def _adapter(model: Model) -> list[Official]:
    D, injection = model.dim, model.injection
    if not isinstance(injection, ConcatInjection):
        return []
    # Our kernel is (2, in, out) with halves [state, input]; theirs is (out, 2 in).
    weight = Official("transformer.adapter.weight", (Part("core.injection.linear.kernel", (2, 0, 1), (D, 2 * D)),))
    bias = Official("transformer.adapter.bias", (vector("core.injection.bias", D),))
    return [weight, bias] if injection.bias else [weight]


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
