"""Transformer-XL (arXiv 1901.02860): names of kimiyoung/transformer-xl:pytorch/mem_transformer.py.

That code writes no config.json: it is to hold the arguments of `MemTransformerLM`, and
`"repo": "kimiyoung/transformer-xl pytorch"`. One softmax over the whole vocabulary is read; the adaptive one
(`cutoffs`, `div_val`) is refused.
"""

from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Strict, model_validator

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.checkpoint.adapters.config import OfficialConfig, only, other_model
from looplm.checkpoint.adapters.hugging_face import CLASS, LENGTH, Dropout
from looplm.config.schema import FinalCrossEntropy, Loop, Model, RelativePositions, ReLU, SegmentMemory

OBJECTIVE = FinalCrossEntropy()


class TransformerXLConfig(OfficialConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = {"repo": CLASS, "tgt_len": LENGTH, "tie_projs": "there is no projection"}
    n_token: int
    n_layer: int
    n_head: int
    d_model: int
    d_head: int
    d_inner: int
    dropout: Dropout = 0.0
    dropatt: Dropout = 0.0
    tie_weight: bool = True
    d_embed: int | None = None
    div_val: Annotated[int, only(1)] = 1
    pre_lnorm: bool = False
    ext_len: Annotated[int, only(0)] = 0
    mem_len: int
    cutoffs: Annotated[tuple[int, ...], Strict(False), only(())] = ()
    same_length: bool = False
    """Every token sees the same number of keys: mem_len, itself included."""
    attn_type: Annotated[int, only(0)] = 0
    clamp_len: int = -1

    @model_validator(mode="after")
    def _embedding(self) -> Self:
        if self.d_embed not in (None, self.d_model):
            raise other_model(f"d_embed={self.d_embed}: looplm has no embedding of another width than d_model")
        return self


def model(config: TransformerXLConfig) -> Model:
    return Model(
        vocab_size=config.n_token,
        dim=config.d_model,
        num_heads=config.n_head,
        head_dim=config.d_head,
        hidden_dim=config.d_inner,
        block_layers=config.n_layer,
        feed_forward=ReLU(),
        attention_window=config.mem_len if config.same_length and config.mem_len else None,
        memory=SegmentMemory(length=config.mem_len),
        norm="layer",
        norm_eps=1e-5,
        norm_placement="pre" if config.pre_lnorm else "post",
        final_norm=False,
        positions=RelativePositions(
            shared_vectors=True, max_distance=config.clamp_len if config.clamp_len > 0 else None
        ),
        tie_embeddings=config.tie_weight,
        head_bias=True,
        embedding_scale=config.d_model**0.5,
    )


def loop(config: TransformerXLConfig) -> Loop:
    return Loop(num_loops=1)


def tensors(model: Model) -> list[Official]:
    D, V, N, H = model.dim, model.vocab_size, model.num_heads, model.head_size
    named = [
        Official(f"layers.{i}.{name}", parts, layer=i)
        for i in range(model.block_layers)
        for name, parts in _layer(model, "core.block.layers").items()
    ]
    singles = {
        "word_emb.emb_layers.0.weight": vector("embedding.table", V, D),
        "crit.out_layers.0.bias": vector("head_bias", V),
        "r_w_bias": vector("core.block.relative_vectors.content", N, H),
        "r_r_bias": vector("core.block.relative_vectors.position", N, H),
    }
    if not model.tie_embeddings:
        singles["crit.out_layers.0.weight"] = vector("head", V, D)
    return named + [Official(name, (part,)) for name, part in singles.items()]


def _layer(model: Model, path: str) -> dict[str, tuple[Part, ...]]:
    D, F, heads = model.dim, model.hidden_dim, (model.num_heads, model.head_size)
    attention, feed_forward = f"{path}.attention", f"{path}.feed_forward"
    projections = ("query.project", "key.project", "value")
    parts = {
        "dec_attn.qkv_net.weight": tuple(linear(f"{attention}.{name}.kernel", (D,), heads) for name in projections),
        "dec_attn.o_net.weight": (linear(f"{attention}.output.kernel", heads, (D,)),),
        "dec_attn.r_net.weight": (linear(f"{attention}.relative.kernel", (D,), heads),),
        "pos_ff.CoreNet.0.weight": (linear(f"{feed_forward}.up.kernel", (D,), (F,)),),
        "pos_ff.CoreNet.3.weight": (linear(f"{feed_forward}.down.kernel", (F,), (D,)),),
        "pos_ff.CoreNet.0.bias": (vector(f"{feed_forward}.up_bias", F),),
        "pos_ff.CoreNet.3.bias": (vector(f"{feed_forward}.down_bias", D),),
    }
    for name, branch in (("dec_attn", "attention_residual"), ("pos_ff", "feed_forward_residual")):
        for theirs, ours in (("weight", "scale"), ("bias", "bias")):
            parts[f"{name}.layer_norm.{theirs}"] = (vector(f"{path}.{branch}.norm.{ours}", D),)
    return parts


def _frequencies(model: Model, shape: tuple[int, ...]) -> np.ndarray:
    return 1 / 10_000.0 ** (np.arange(0.0, model.dim, 2.0) / model.dim)


BUFFERS = {"pos_emb.inv_freq": _frequencies}
