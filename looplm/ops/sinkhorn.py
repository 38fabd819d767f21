"""Nearly doubly stochastic matrices (Sinkhorn and Knopp 1967), of few rows and many tokens."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp


def sinkhorn(
    logits: jax.Array,
    *,
    iterations: int,
    eps: float = 0.0,
    temperature: float = 1.0,
    last: Literal["columns", "rows"] = "columns",
) -> jax.Array:
    """Divide exp(logits / temperature) in turn by the sums of its rows and of its columns.

    Args:
        logits: (..., n, n), float32 at least.
        iterations: how often each of the two is done.
        eps: added to the exponentials after the first division, and to every sum after it. 0: sums are taken of
            logarithms, so that no logit is too large.
        last: which of the two an iteration ends with.

    Returns:
        Like logits; what was done last sums to 1. Nothing between is kept for the backward pass.
    """
    divide = partial(_divided, iterations=iterations, eps=eps, last=last)
    return jax.checkpoint(divide)(logits / temperature)


def _divided(logits: jax.Array, *, iterations: int, eps: float, last: str) -> jax.Array:
    rows, columns = 1, 0  # the dims over which they are summed, once the matrix stands first
    first, second = (rows, columns) if last == "columns" else (columns, rows)
    # Tokens last: with rows of n numbers a processor would compute n of them at a time.
    logits = jnp.moveaxis(logits, (-2, -1), (0, 1))

    def logarithms(_: int, x: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(jax.nn.log_softmax(x, axis=first), axis=second)

    def divided(x: jax.Array, dim: int) -> jax.Array:
        return x / (jnp.sum(x, axis=dim, keepdims=True) + eps)

    if eps == 0:
        result = jnp.exp(jax.lax.fori_loop(0, iterations, logarithms, logits))
    else:
        begun = divided(jax.nn.softmax(logits, axis=first) + eps, second)
        result = jax.lax.fori_loop(1, iterations, lambda _, x: divided(divided(x, first), second), begun)
    return jnp.moveaxis(result, (0, 1), (-2, -1))
