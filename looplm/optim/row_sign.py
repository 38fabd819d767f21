"""Sign descent for tables of which a step reads a few rows: those of the ids of puzzles (arXiv 2506.21734).

There are many rows and each is read seldom: moments would be of gradients long past, and would double a table that may
be larger than the model.
"""

import jax
import jax.numpy as jnp
import optax

from looplm.model.functional import Params


def scale_by_row_sign(weight_decay: float) -> optax.GradientTransformation:
    """The sign of the gradient plus `weight_decay` of the parameter, in rows that have a gradient; 0 in all others.

    A row that is read several times in a step has the sum of its gradients, whose sign counts once.
    """

    def direction(gradient: jax.Array, table: jax.Array) -> jax.Array:
        is_read = jnp.any(gradient != 0, axis=tuple(range(1, gradient.ndim)), keepdims=True)
        return jnp.where(is_read, jnp.sign(gradient) + weight_decay * table, 0)

    def update(updates: Params, params: Params | None) -> Params:
        assert params is not None, "weight decay reads the parameters"
        return jax.tree.map(direction, updates, params)

    return optax.stateless(update)
