"""ALBERT (arXiv 1909.11942) in the names of the library transformers (5.23.0): a loop is a visit of a group of layers.

Dropout is of training alone and looplm has none. `AlbertModel`, which has no head, is not read: a language model is.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.checkpoint.adapters.config import OfficialConfig, only, other_model
from looplm.checkpoint.adapters.hugging_face import FIRST_VALUES, FORM, WITHOUT_EFFECT, Dropout
from looplm.config.schema import (
    GELU,
    DenseAttention,
    FinalCrossEntropy,
    HeadTransform,
    LearnedPositions,
    Loop,
    Model,
    NormalInit,
    ReLU,
    SequenceHead,
    SingleCore,
)
from looplm.errors import UserError

OBJECTIVE = FinalCrossEntropy()
MASKED, PRETRAINING = "AlbertForMaskedLM", "AlbertForPreTraining"
OF_TRAINING = "dropped in training alone"
UNREAD = "a key of the first release, which the library does not read"
FEED_FORWARDS = {"gelu_new": GELU(bias=True), "gelu": GELU(bias=True, exact=True), "relu": ReLU(bias=True)}
TRANSFORMS = {
    "gelu_new": HeadTransform(),
    "gelu": HeadTransform(activation="gelu_exact"),
    "relu": HeadTransform(activation="relu"),
}
TYPES = "albert.embeddings.token_type_embeddings.weight"
POSITIONS = "albert.embeddings.position_embeddings.weight"
COPIES = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
"""Stored a second time by some releases of the library."""


class AlbertConfig(OfficialConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = {
        **{key: reason for key, reason in WITHOUT_EFFECT.items() if key != "architectures"},
        "classifier_dropout_prob": OF_TRAINING,
        "net_structure_type": UNREAD,
        "gap_size": UNREAD,
        "num_memory_blocks": UNREAD,
        "down_scale_factor": UNREAD,
        "layers_to_keep": UNREAD,
        "chunk_size_feed_forward": FORM,
        "initializer_factor": FIRST_VALUES,
    }
    architectures: tuple[Annotated[str, only(MASKED, PRETRAINING)], ...] = Field((MASKED,), strict=False)
    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_layers: int = 12
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: Literal["gelu_new", "gelu", "relu"] = "gelu_new"
    hidden_dropout_prob: Dropout = 0.0
    attention_probs_dropout_prob: Dropout = 0.0
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: Annotated[str, only("absolute")] = "absolute"
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _every_group_runs(self) -> Self:
        if not 1 <= self.num_hidden_groups <= self.num_hidden_layers:
            raise other_model(
                f"num_hidden_groups={self.num_hidden_groups}: there is at least one, and at most one for each of the "
                f"{self.num_hidden_layers} of num_hidden_layers"
            )
        return self


def model(config: AlbertConfig) -> Model:
    return Model(
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        embedding_dim=config.embedding_size,
        embedding_norm=True,
        token_types=config.type_vocab_size,
        num_heads=config.num_attention_heads,
        hidden_dim=config.intermediate_size,
        block_layers=config.inner_group_num,
        core=SingleCore(groups=config.num_hidden_groups),
        feed_forward=FEED_FORWARDS[config.hidden_act],
        attention=DenseAttention(bias=True),
        attention_mask="full",
        qk_bias=True,
        positions=LearnedPositions(length=config.max_position_embeddings),
        norm="layer",
        norm_eps=config.layer_norm_eps,
        norm_placement="post",
        final_norm=False,
        head_transform=TRANSFORMS[config.hidden_act],
        head_bias=True,
        sequence_head=SequenceHead() if PRETRAINING in config.architectures else None,
        tie_embeddings=config.tie_word_embeddings,
        init=NormalInit(std=config.initializer_range),
    )


def loop(config: AlbertConfig) -> Loop:
    return Loop(num_loops=config.num_hidden_layers)


def describe(model: Model, loop: Loop, length: int) -> dict[str, Any]:
    """length: is not asked; a table of positions has its own."""
    if not isinstance(model.positions, LearnedPositions):
        raise UserError(f"model.positions={model.positions.kind} (there learned)")
    if not isinstance(model.core, SingleCore):
        raise UserError(f"model.core={model.core.kind} (there single)")
    activation = next((name for name, kind in FEED_FORWARDS.items() if kind == model.feed_forward), "gelu_new")
    return {
        "model_type": "albert",
        "architectures": [MASKED if model.sequence_head is None else PRETRAINING],
        "vocab_size": model.vocab_size,
        "embedding_size": model.embedding_width,
        "hidden_size": model.dim,
        "num_hidden_layers": loop.num_loops,
        "num_hidden_groups": model.core.groups,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.hidden_dim,
        "inner_group_num": model.block_layers,
        "hidden_act": activation,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": model.positions.length,
        "type_vocab_size": model.token_types,
        "initializer_range": model.init.std if isinstance(model.init, NormalInit) else 0.02,
        "layer_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
    }


def tensors(model: Model) -> list[Official]:
    D, E, V = model.dim, model.embedding_width, model.vocab_size
    assert isinstance(model.positions, LearnedPositions), "of `model`"
    assert isinstance(model.core, SingleCore), "of `model`"
    table = [Official(TYPES, (vector("widening.types", model.token_types, E),))] if model.token_types else []
    head = [] if model.tie_embeddings else [Official("predictions.decoder.weight", (vector("head", V, E),))]
    return [
        Official("albert.embeddings.word_embeddings.weight", (vector("embedding.table", V, E),)),
        Official(POSITIONS, (vector("position_table.table", model.positions.length, E),)),
        *table,
        *_norm("albert.embeddings.LayerNorm", "widening.norm", E),
        *_linear("albert.encoder.embedding_hidden_mapping_in", "widening.map.kernel", "widening.bias", (E,), (D,)),
        *(tensor for group in range(model.core.groups) for tensor in _group(model, model.core.groups, group)),
        *_linear("predictions.dense", "narrowing.map.kernel", "narrowing.bias", (D,), (E,)),
        *_norm("predictions.LayerNorm", "narrowing.norm", E),
        Official("predictions.bias", (vector("head_bias", V),)),
        *head,
        *(_sequence_head(model.sequence_head, D) if model.sequence_head else []),
    ]


def _group(model: Model, groups: int, group: int) -> list[Official]:
    path = "core.block.blocks.layers" if groups > 1 else "core.block.layers"
    return [
        Official(
            f"albert.encoder.albert_layer_groups.{group}.albert_layers.{i}.{name}",
            (part,),
            layer=(group, i) if groups > 1 else i,
        )
        for i in range(model.block_layers)
        for name, part in _layer(model, path).items()
    ]


def _layer(model: Model, path: str) -> dict[str, Part]:
    """By official name in a layer; path: of our layer."""
    D, F, N, H = model.dim, model.hidden_dim, model.num_heads, model.head_size
    attention, feed_forward = f"{path}.attention", f"{path}.feed_forward"
    parts = {}
    for name, ours in (("query", "query"), ("key", "key")):
        parts[f"attention.{name}.weight"] = linear(f"{attention}.{ours}.project.kernel", (D,), (N, H))
        parts[f"attention.{name}.bias"] = Part(f"{attention}.{ours}.bias", (0, 1), (N * H,))
    return parts | {
        "attention.value.weight": linear(f"{attention}.value.kernel", (D,), (N, H)),
        "attention.value.bias": Part(f"{attention}.value_bias", (0, 1), (N * H,)),
        "attention.dense.weight": linear(f"{attention}.output.kernel", (N, H), (D,)),
        "attention.dense.bias": vector(f"{attention}.output_bias", D),
        "attention.LayerNorm.weight": vector(f"{path}.attention_residual.norm.scale", D),
        "attention.LayerNorm.bias": vector(f"{path}.attention_residual.norm.bias", D),
        "ffn.weight": linear(f"{feed_forward}.up.kernel", (D,), (F,)),
        "ffn.bias": vector(f"{feed_forward}.up_bias", F),
        "ffn_output.weight": linear(f"{feed_forward}.down.kernel", (F,), (D,)),
        "ffn_output.bias": vector(f"{feed_forward}.down_bias", D),
        "full_layer_layer_norm.weight": vector(f"{path}.feed_forward_residual.norm.scale", D),
        "full_layer_layer_norm.bias": vector(f"{path}.feed_forward_residual.norm.bias", D),
    }


def _sequence_head(head: SequenceHead, D: int) -> list[Official]:
    """The pooler, and what says in which order two segments stood."""
    sizes = (D,), (head.classes,)
    return [
        *_linear("albert.pooler", "sequence_head.pool", "sequence_head.pool_bias", (D,), (D,)),
        *_linear("sop_classifier.classifier", "sequence_head.kernel", "sequence_head.bias", *sizes),
    ]


def _linear(name: str, kernel: str, bias: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> list[Official]:
    return [
        Official(f"{name}.weight", (linear(kernel, inputs, outputs),)),
        Official(f"{name}.bias", (vector(bias, *outputs),)),
    ]


def _norm(name: str, path: str, width: int) -> list[Official]:
    return [
        Official(f"{name}.weight", (vector(f"{path}.scale", width),)),
        Official(f"{name}.bias", (vector(f"{path}.bias", width),)),
    ]
