"""Mixtures of experts: which layers have them, and settings that have a part."""

from collections.abc import Iterator
from typing import get_args

from looplm.config.check.depth import max_loops
from looplm.config.check.rule import Rules
from looplm.config.schema import MixtureAttention, MoE, Place, Run


def _experts(run: Run) -> Iterator[str]:
    model = run.model
    for place in get_args(Place):
        key, num_layers = f"{place}_feed_forward", model.layers_of(place)
        own = getattr(model, key, None)
        if own is not None and not num_layers:
            yield f"model.{key}={own.kind} has no layer to apply to: model.{place}_layers=0; leave it at null"
        elif isinstance(moe := model.feed_forward_of(place), MoE) and num_layers:
            name = f"model.{key}" if own is not None else "model.feed_forward"
            yield from (fault.format(name=name) for fault in _layers_of(moe, place, num_layers, own is not None))
            largest = max_loops(run)
            if place == "block" and largest and moe.loop_biases > largest:
                yield (
                    f"{name}.loop_biases={moe.loop_biases} is more than the {largest} loops that run; use at most that"
                )


def _layers_of(moe: MoE, place: Place, num_layers: int, own: bool) -> Iterator[str]:
    """Of one section; {name} stands for the key."""
    if moe.experts_per_token > moe.num_experts:
        yield (
            f"{{name}}.experts_per_token={moe.experts_per_token} is more than num_experts={moe.num_experts}; "
            "use at most that"
        )
    if outside := [i for i in moe.dense_layers if i >= num_layers]:
        remedy = "take them out" if own or place == "block" else f"set model.{place}_feed_forward"
        yield f"{{name}}.dense_layers={outside}: the {place} has layers 0 to {num_layers - 1}; {remedy}"
    elif len(set(moe.dense_layers)) >= num_layers:
        yield f"{{name}}.dense_layers={list(moe.dense_layers)} leaves no layer with experts; use kind={moe.dense.kind}"
    elif list(moe.dense_layers) != sorted(set(moe.dense_layers)):
        yield f"{{name}}.dense_layers={list(moe.dense_layers)} must be ascending, each layer once"
    if moe.backend != "auto" and moe.capacity_factor is not None:
        yield (
            f"{{name}}.backend={moe.backend} has no part in capacity_factor={moe.capacity_factor}, where all experts "
            "have as many places; leave it at auto"
        )
    if moe.router_loops and moe.loop_biases:
        yield (
            f"{{name}}.router_loops={moe.router_loops} gives every loop a router, and "
            f"loop_biases={moe.loop_biases} is for one that loops share; leave loop_biases at 0"
        )
    if moe.router_loops and own:
        yield f"{{name}}.router_loops={moe.router_loops}: the {place} runs once; leave it at null"
    if moe.loop_biases and own:
        yield f"{{name}}.loop_biases={moe.loop_biases}: the {place} runs once; leave it at 0"
    if moe.balance.auxiliary_over != "sequence" and not moe.balance.auxiliary_weight:
        yield (
            f"{{name}}.balance.auxiliary_over={moe.balance.auxiliary_over} has no part in auxiliary_weight=0; "
            "leave it at sequence"
        )
    if moe.experts_per_token == moe.num_experts and (moe.balance.bias_rate or moe.capacity_factor):
        yield (
            f"{{name}}.experts_per_token={moe.experts_per_token} uses every expert for every token: there is nothing "
            "to balance or to limit; use fewer"
        )


def _heads(run: Run) -> Iterator[str]:
    mixture = run.model.attention
    if not isinstance(mixture, MixtureAttention):
        return
    if mixture.entropy_weight and mixture.num_experts == 1:
        yield (
            f"model.attention.entropy_weight={mixture.entropy_weight} has no part in num_experts=1, where nothing is "
            "chosen; set it to 0, or use more experts"
        )
    if mixture.experts_per_token > mixture.num_experts:
        yield (
            f"model.attention.experts_per_token={mixture.experts_per_token} is more than "
            f"num_experts={mixture.num_experts}; use at most that"
        )


RULES: Rules = (_experts, _heads)
