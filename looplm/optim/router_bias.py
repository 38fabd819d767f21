"""Balance without a loss: a bias on the choice of experts that moves against their load (arXiv 2412.19437).

The bias is a parameter that no gradient reaches, so that it is sharded, saved and restored like all others.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import MoE, Place
from looplm.model.functional import FunctionalLM, Params


def move_biases(lm: FunctionalLM, params: Params, loads: Mapping[Place, jax.Array]) -> Params:
    """Makes one step of the rule: by `bias_rate`, up where fewer than the mean chose an expert.

    Args:
        loads: choices of the whole batch by stack, (layers, rows of the table, E).

    Returns the parameters; those that are no such bias are the same arrays.
    """

    def moved(bias_LWE: jax.Array, declaration: nnx.Param) -> jax.Array:
        if not declaration.balances or declaration.place not in loads:
            return bias_LWE
        moe, load_LWE = lm.config.feed_forward_of(declaration.place), loads[declaration.place]
        assert isinstance(moe, MoE), "else it has no such bias"
        mean_LW1 = jnp.mean(load_LWE.astype(jnp.float32), axis=-1, keepdims=True)
        return bias_LWE + moe.balance.bias_rate * jnp.sign(mean_LW1 - load_LWE)

    return lm.map(moved, params)
