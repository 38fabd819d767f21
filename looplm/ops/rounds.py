"""A sum over rounds of which nearly always one is enough, with its gradient.

Round 0 is computed in place. The others are in a loop that turns as often as the data say, so they cost nothing where
there are none. JAX has no gradient of such a loop: here it computes every later round once more.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

LATER_ROUNDS = "later_rounds"
"""Of the loops, in the compiled program."""


def sum_of_rounds(function: Callable[..., jax.Array], num_rounds: jax.Array, indices: Any, *arrays: Any) -> jax.Array:
    """sum over r < num_rounds of function(r, indices, *arrays), at least one.

    Args:
        function: of tracers it may see only its arguments.
        num_rounds: int32. Where rounds hold collectives, the same on all devices that take part in one.
        indices: integer arrays, without a gradient.
    """
    return _sum(function, num_rounds, indices, arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(function: Callable[..., jax.Array], num_rounds: jax.Array, indices: Any, arrays: tuple) -> jax.Array:
    first = function(jnp.int32(0), indices, *arrays)
    return _later(num_rounds, first, lambda r: function(r, indices, *arrays))


def _forward(function: Callable, num_rounds: jax.Array, indices: Any, arrays: tuple) -> tuple[jax.Array, tuple]:
    first, pull_back = jax.vjp(lambda *arrays: function(jnp.int32(0), indices, *arrays), *arrays)
    total = _later(num_rounds, first, lambda r: function(r, indices, *arrays))
    return total, (num_rounds, indices, arrays, pull_back)


def _backward(function: Callable, saved: tuple, cotangent: jax.Array) -> tuple:
    num_rounds, indices, arrays, pull_back = saved

    def gradients(r: jax.Array) -> tuple:
        _, pull_back = jax.vjp(lambda *arrays: function(r, indices, *arrays), *arrays)
        return pull_back(cotangent)

    return None, None, _later(num_rounds, pull_back(cotangent), gradients)


_sum.defvjp(_forward, _backward)


def _later(num_rounds: jax.Array, first: Any, function: Callable[[jax.Array], Any]) -> Any:
    """first + sum over 0 < r < num_rounds of function(r)."""
    with jax.named_scope(LATER_ROUNDS):
        return jax.lax.fori_loop(1, num_rounds, lambda r, total: jax.tree.map(jnp.add, total, function(r)), first)
