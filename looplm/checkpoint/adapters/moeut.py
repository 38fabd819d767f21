"""MoEUT (arXiv 2405.16039): names of RobertCsordas/moeut:moeut/moeut.py.

That code writes no config.json: it is to hold the arguments of `MoEUTLM`, those of its attention that differ from their
defaults (`rotate_fraction`, `rope_base`), and `"repo": "RobertCsordas/moeut"`.
"""

from typing import ClassVar, Self

from pydantic import PositiveInt, model_validator

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.checkpoint.adapters.config import OfficialConfig, other_model
from looplm.checkpoint.adapters.hugging_face import CLASS, Dropout
from looplm.config.schema import Balance, FinalCrossEntropy, Loop, MixtureAttention, Model, MoE, Rope

OBJECTIVE = FinalCrossEntropy()


class MoEUTConfig(OfficialConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = {"repo": CLASS}
    n_tokens: int
    d_model: int
    n_layers: int
    n_heads: int
    d_head: int | None = None
    group_size: PositiveInt = 2
    n_repeats: int | None = None
    """Follows from n_layers and group_size."""
    ff_n_experts: int
    ff_k: int = 8
    ff_expert_size: int = 128
    att_n_experts: int
    att_k: int = 2
    entropy_reg: float = 0.01
    att_entropy_reg: float = 0.001
    rotate_fraction: float = 0.5
    rope_base: float = 10_000.0
    dropout: Dropout = 0.0
    ff_expert_dropout: Dropout = 0.0
    att_expert_dropout: Dropout = 0.0

    @model_validator(mode="after")
    def _repeats(self) -> Self:
        if self.n_repeats is not None and self.n_repeats != self.repeats():
            raise other_model(f"n_repeats={self.n_repeats}: it is n_layers // group_size, {self.repeats()}")
        return self

    def repeats(self) -> int:
        return self.n_layers // self.group_size


def model(config: MoEUTConfig) -> Model:
    return Model(
        vocab_size=config.n_tokens,
        dim=config.d_model,
        num_heads=config.n_heads,
        head_dim=config.d_head,
        hidden_dim=config.ff_expert_size,
        block_layers=config.group_size,
        feed_forward=MoE(
            num_experts=config.ff_n_experts,
            experts_per_token=config.ff_k,
            expert_dim=config.ff_expert_size,
            expert="relu",
            scores="sigmoid",
            renormalise=False,
            balance=Balance(entropy_weight=config.entropy_reg),
        ),
        attention=MixtureAttention(
            num_experts=config.att_n_experts,
            experts_per_token=min(config.att_k, config.att_n_experts),
            entropy_weight=config.att_entropy_reg if config.att_n_experts > 1 else 0.0,
        ),
        rope=Rope(theta=config.rope_base, fraction=config.rotate_fraction),
        norm="layer",
        norm_eps=1e-5,
        norm_placement="peri",
        head_bias=True,
    )


def loop(config: MoEUTConfig) -> Loop:
    return Loop(num_loops=config.repeats())


def tensors(model: Model) -> list[Official]:
    D, V = model.dim, model.vocab_size
    named = [
        Official(f"transformer.layers.{i}.{name}", (part,), layer=i)
        for i in range(model.block_layers)
        for name, part in _layer(model, "core.block.layers").items()
    ]
    singles = {
        "embedding.weight": vector("embedding.table", V, D),
        "out_norm.weight": vector("final_norm.scale", D),
        "out_norm.bias": vector("final_norm.bias", D),
        "lm_head.weight": vector("head", V, D),
        "lm_head.bias": vector("head_bias", V),
    }
    return named + [Official(name, (part,)) for name, part in singles.items()]


def _layer(model: Model, path: str) -> dict[str, Part]:
    moe, attention, feed_forward = model.feed_forward, f"{path}.attention", f"{path}.feed_forward"
    assert isinstance(moe, MoE)
    assert moe.expert_dim is not None, "as this file has it"
    D, E, F = model.dim, moe.num_experts, moe.expert_dim
    N, H = model.num_heads, model.head_size
    parts = {
        "attention.q.weight": linear(f"{attention}.query.project.kernel", (D,), (N, H)),
        "attention.k.weight": linear(f"{attention}.key.project.kernel", (D,), (N, H)),
        **_projections(model, attention, N, H),
        "ffn.keys": vector(f"{feed_forward}.experts.up", E, D, F),
        "ffn.values": vector(f"{feed_forward}.experts.down", E, F, D),
        "ffn.expert_sel": linear(f"{feed_forward}.router.kernel", (D,), (E,)),
    }
    for name, branch in (("ln1", "attention_residual"), ("ln2", "feed_forward_residual")):
        parts[f"{name}.weight"] = vector(f"{path}.{branch}.norm.scale", D)
        parts[f"{name}.bias"] = vector(f"{path}.{branch}.norm.bias", D)
    return parts


def _projections(model: Model, attention: str, N: int, H: int) -> dict[str, Part]:
    """Officially the experts of a head are one after the other; one alone is a linear map."""
    mixture, D = model.attention, model.dim
    assert isinstance(mixture, MixtureAttention)
    E = mixture.num_experts
    output, gate = f"{attention}.output.experts.kernel", linear(f"{attention}.output_router.kernel", (D,), (N, E))
    if not mixture.routed_values:
        return {
            "attention.v": linear(f"{attention}.value.kernel", (D,), (N, H)),
            "attention.o": Part(output, (3, 0, 1, 2), (D, N * H)),
            "attention.sel_o": gate,
        }
    return {
        "attention.v": Part(f"{attention}.value.experts.kernel", (2, 0, 1, 3), (N * E, D, H)),
        "attention.o": Part(output, (1, 0, 2, 3), (N * E, H, D)),
        "attention.sel_v": linear(f"{attention}.value_router.kernel", (D,), (N, E)),
        "attention.sel_o": gate,
    }
