"""Balance without a loss: a bias on the choice of experts that moves against their load (arXiv 2412.19437).

The bias is a parameter that no gradient reaches, so that it is sharded, saved and restored like all others.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from looplm.config.schema import Model, MoE, Place
from looplm.model.functional import Params

STACKS: dict[Place, tuple[str, ...]] = {"prelude": ("prelude",), "block": ("core", "block"), "coda": ("coda",)}
ROUTER = ("layers", "feed_forward", "router")


def move_biases(config: Model, params: Params, loads: Mapping[Place, jax.Array]) -> Params:
    """The parameters after one step of the rule: by `bias_rate`, up where fewer than the mean chose an expert.

    Args:
        loads: choices of the whole batch, (layers, rows of the table, E).
    """
    for place, load_LWE in loads.items():
        moe = config.feed_forward_of(place)
        if isinstance(moe, MoE) and moe.balance.bias_rate:
            mean_LW1 = jnp.mean(load_LWE.astype(jnp.float32), axis=-1, keepdims=True)
            change_LWE = moe.balance.bias_rate * jnp.sign(mean_LW1 - load_LWE)
            params = _added(params, (*STACKS[place], *ROUTER, "balance_bias"), change_LWE)
    return params


def _added(tree: Params, path: tuple[str, ...], change: jax.Array) -> Params:
    """A copy in which one leaf is changed."""
    name, *rest = path
    return tree | {name: _added(tree[name], tuple(rest), change) if rest else tree[name] + change}
