"""Ouro (arXiv 2510.25741): names of the Hugging Face code of ByteDance/Ouro."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from looplm.checkpoint.adapters.base import Official, linear, vector
from looplm.checkpoint.adapters.config import only, other_model
from looplm.checkpoint.adapters.hugging_face import FORM, DecoderConfig, dense, described, ends, projections
from looplm.checkpoint.adapters.window import WindowConfig
from looplm.checkpoint.adapters.window import described as described_window
from looplm.config.schema import ExitGate, ExpectedCrossEntropy, Loop, Model, NormalInit

LEFT_TO_THE_CALL = "looplm leaves it to a call when tokens exit; take the key out to load the weights"
OBJECTIVE = ExpectedCrossEntropy(entropy_weight=0.05)


def _never(threshold: float | None) -> float | None:
    if threshold is not None and threshold < 1:
        raise other_model(f"{LEFT_TO_THE_CALL}, and generate with gate:{threshold}")
    return threshold


class OuroConfig(WindowConfig, DecoderConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = DecoderConfig.WITHOUT_EFFECT | {"chunk_size": FORM}
    num_key_value_heads: int | None
    rms_norm_eps: float
    total_ut_steps: int
    early_exit_threshold: Annotated[float | None, AfterValidator(_never)] = 1.0
    early_exit_step: Annotated[int | None, only(None, otherwise=LEFT_TO_THE_CALL)] = None


def model(config: OuroConfig) -> Model:
    return Model(
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        hidden_dim=config.intermediate_size,
        block_layers=config.num_hidden_layers,
        attention_window=config.window(),
        rope=config.rope(),
        norm_placement="sandwich",
        norm_eps=config.rms_norm_eps,
        norm_at_loop_end=True,
        final_norm=False,
        exit_gate=ExitGate(),
        tie_embeddings=config.tie_word_embeddings,
        init=NormalInit(std=config.initializer_range),
    )


def loop(config: OuroConfig) -> Loop:
    return Loop(num_loops=config.total_ut_steps)


def describe(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    return {
        "model_type": "ouro",
        **described(model, "OuroForCausalLM"),
        **described_window(model),
        "max_position_embeddings": length,
        "total_ut_steps": loop.num_loops,
        "early_exit_threshold": 1.0,
    }


def tensors(model: Model) -> list[Official]:
    D, layers = model.dim, "core.block.layers"
    per_layer = {
        "input_layernorm": vector(f"{layers}.attention_residual.norm.scale", D),
        "input_layernorm_2": vector(f"{layers}.attention_residual.out_norm.scale", D),
        "post_attention_layernorm": vector(f"{layers}.feed_forward_residual.norm.scale", D),
        "post_attention_layernorm_2": vector(f"{layers}.feed_forward_residual.out_norm.scale", D),
        **projections(model, layers),
        **dense(model, layers),
    }
    embeddings, (norm, *head) = ends(model, "core.end_norm.scale")
    return [
        embeddings,
        *(
            Official(f"model.layers.{i}.{name}.weight", (part,), layer=i)
            for i in range(model.block_layers)
            for name, part in per_layer.items()
        ),
        norm,
        Official("model.early_exit_gate.weight", (linear("gate.kernel", (D,), (1,)),)),
        Official("model.early_exit_gate.bias", (vector("gate.bias", 1),)),
        *head,
    ]
