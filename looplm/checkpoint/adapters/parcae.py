"""Parcae (arXiv 2604.12946): names of sandyresearch/parcae:parcae_lm/models/parcae/parcae.py."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from looplm.checkpoint.adapters.base import Official, Part, linear, rotation_table, vector
from looplm.checkpoint.adapters.config import OfficialConfig, only, other_model
from looplm.checkpoint.adapters.hugging_face import CLASS, FIRST_VALUES, FORM, LENGTH
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

OBJECTIVE = FinalCrossEntropy()
BUFFERS = {"freqs_cis": rotation_table}
EVERY, GATE_CHANNELS = 2, 32
PADDED = "how the vocabulary was padded; what came of it is padded_vocab_size"
No = Annotated[bool, only(False)]


class RopeSettings(OfficialConfig):
    """`from_pretrained` takes these values whatever is stored; the code's other readers take what is stored."""

    use_rope: Annotated[bool, only(True)] = True
    rope_condense_ratio: Annotated[int, only(1)] = 1
    rope_base: Annotated[float, only(50_000.0)] = 50_000.0


class ParcaeConfig(OfficialConfig):
    """What all released models have is fixed; other values are other models, which this file does not know."""

    WITHOUT_EFFECT: ClassVar[dict[str, str]] = {
        "_class_name": CLASS,
        "name": CLASS,
        "hf_config": CLASS,
        "block_size": LENGTH,
        "vocab_size": PADDED,
        "padding_multiple": PADDED,
        "init_orthogonal": FIRST_VALUES,
        "skip_initialization": FIRST_VALUES,
        "activation_checkpoint_impl": FORM,
        "simple_ops": FORM,
        "strategy": FORM,
        "lockstep_n": "which processes draw one depth",
        "lockstep_k": "which processes draw one depth",
        "curriculum_target": "of sampling schemes that are refused",
    }
    padded_vocab_size: int
    n_embd: int
    num_attention_heads: int
    num_key_value_heads: int | None
    intermediate_size: int
    n_layers_in_prelude: int
    n_layers_in_recurrent_block: int
    n_layers_in_coda: int
    recurrent_embedding_dimension: int
    recurrent_intermediation_embedding_dimension: int
    recurrent_num_attention_heads: int | None = None
    norm_eps: float
    qk_norm: bool
    prelude_norm: bool
    logit_softcap: float | None = None
    tie_embeddings: bool
    mean_recurrence: int
    mean_backprop_depth: int
    recurrent_iteration_method: Literal["per-batch", "per-sequence"]
    rope_settings: RopeSettings = RopeSettings()
    block_class_name: Annotated[str, only("TransformerPreNormBlock")] = "TransformerPreNormBlock"
    norm_class_name: Annotated[str, only("RMSNorm")] = "RMSNorm"
    mlp_class_name: Annotated[str, only("BaseMLP")] = "BaseMLP"
    nonlin_name: Annotated[str, only("ReLU2")] = "ReLU2"
    injection_type: Annotated[str, only("diagonal")] = "diagonal"
    state_init: Annotated[str, only("like-init")] = "like-init"
    init_strategy: Annotated[str, only("scaled-zero")] = "scaled-zero"
    """Others scale embeddings and logits otherwise."""
    sampling_scheme: Annotated[str, only("poisson-truncated-full")] = "poisson-truncated-full"
    attn_impl: Annotated[str, only("flash", "sdpa")] = "flash"
    use_fused_head: Annotated[str, only("pytorch")] = "pytorch"
    model_class_name: Annotated[str, only("Parcae")] = "Parcae"
    mup_model_scaling_factor: Annotated[int, only(1)] = 1
    clip_qkv: Annotated[float | None, only(None)] = None
    randomize_positions_from: Annotated[int | None, only(None)] = None
    bias: No = False
    qk_bias: No = False
    use_abacus: No = False
    debias_attention: No = False
    center_attention: No = False
    is_recurrent_block_config: Annotated[bool, only(False), Field(alias="_is_recurrent_block_config")] = False

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        wide = {
            "num_key_value_heads": "num_attention_heads",
            "recurrent_embedding_dimension": "n_embd",
            "recurrent_intermediation_embedding_dimension": "intermediate_size",
            "recurrent_num_attention_heads": "num_attention_heads",
        }
        for key, same in wide.items():
            value, needed = getattr(self, key), getattr(self, same)
            if value is not None and value != needed:
                raise other_model(f"{key}={value}: in a released Parcae it is {same}, {needed}")
        # The official code pairs tables and gates by the layer's number, which it counts in two ways.
        for part in ("prelude", "recurrent_block", "coda"):
            if (count := getattr(self, key := f"n_layers_in_{part}")) % EVERY:
                raise other_model(f"{key}={count}: in a released Parcae it is even")
        return self


def model(config: ParcaeConfig) -> Model:
    return Model(
        vocab_size=config.padded_vocab_size,
        dim=config.n_embd,
        num_heads=config.num_attention_heads,
        hidden_dim=config.intermediate_size,
        prelude_layers=config.n_layers_in_prelude,
        block_layers=config.n_layers_in_recurrent_block,
        coda_layers=config.n_layers_in_coda,
        feed_forward=SquaredReLU(scale=0.5),
        qk_norm=config.qk_norm,
        qk_norm_scale=False,
        rope=Rope(theta=config.rope_settings.rope_base, layout="interleaved"),
        value_embedding=ValueEmbedding(every=EVERY, gate_channels=GATE_CHANNELS),
        norm_eps=config.norm_eps,
        prelude_norm=config.prelude_norm,
        injection=DiagonalInjection(),
        state_init=NormalState(std=math.sqrt(2 / (5 * config.n_embd))),
        read_out=ReadOut(),
        tie_embeddings=config.tie_embeddings,
        logit_softcap=config.logit_softcap,
        init=OrthogonalInit(),
    )


def loop(config: ParcaeConfig) -> Loop:
    return Loop(
        num_loops=config.mean_recurrence,
        depth=PoissonDepth(),
        depth_per="sequence" if config.recurrent_iteration_method == "per-sequence" else "batch",
        backprop_loops=config.mean_backprop_depth,
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
