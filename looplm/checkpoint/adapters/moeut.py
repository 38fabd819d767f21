"""MoEUT (arXiv 2405.16039): names of RobertCsordas/moeut:moeut/moeut.py.

That code writes no config.json: it is to hold the arguments of `MoEUTLM`, and `"repo": "RobertCsordas/moeut"`.
"""

from typing import Any

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.config.schema import Balance, FinalCrossEntropy, Loop, MixtureAttention, Model, MoE, Rope
from looplm.errors import UserError

OBJECTIVE = FinalCrossEntropy()
DROPOUTS = ("dropout", "ff_expert_dropout", "att_expert_dropout")


def model(config: dict[str, Any]) -> Model:
    if dropped := [f"{key}={config[key]}" for key in DROPOUTS if config.get(key)]:
        raise UserError(f"{', '.join(dropped)}: looplm drops nothing in training; set it to 0 to load the weights")
    expert_dim, num_experts = config.get("ff_expert_size", 128), config["att_n_experts"]
    return Model(
        vocab_size=config["n_tokens"],
        dim=config["d_model"],
        num_heads=config["n_heads"],
        head_dim=config.get("d_head"),
        hidden_dim=expert_dim,
        block_layers=config.get("group_size", 2),
        feed_forward=MoE(
            num_experts=config["ff_n_experts"],
            experts_per_token=config.get("ff_k", 8),
            expert_dim=expert_dim,
            expert="relu",
            scores="sigmoid",
            renormalise=False,
            balance=Balance(entropy_weight=config.get("entropy_reg", 0.01)),
        ),
        attention=MixtureAttention(
            num_experts=num_experts,
            experts_per_token=min(config.get("att_k", 2), num_experts),
            entropy_weight=config.get("att_entropy_reg", 0.001) if num_experts > 1 else 0.0,
        ),
        rope=Rope(theta=config.get("rope_base", 10_000), fraction=config.get("rotate_fraction", 0.5)),
        norm="layer",
        norm_eps=1e-5,
        norm_placement="peri",
        head_bias=True,
    )


def loop(config: dict[str, Any]) -> Loop:
    return Loop(num_loops=config["n_layers"] // config.get("group_size", 2))


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
