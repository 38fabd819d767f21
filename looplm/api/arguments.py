"""Arrays that are given to a model from Python, checked before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np

from looplm.config.schema import Model
from looplm.errors import UserError


def token_ids(model: Model, name: str, given_BS: jax.typing.ArrayLike, *, but_for: int | None = None) -> jax.Array:
    """Return the ids as an array. Raises UserError unless they are integers (B, S) of the vocabulary, or `but_for`; a
    traced array cannot be looked into."""
    ids_BS = jnp.asarray(given_BS)
    if ids_BS.ndim != 2 or not ids_BS.size or not jnp.issubdtype(ids_BS.dtype, jnp.integer):
        raise UserError(f"{name} of shape {ids_BS.shape} and type {ids_BS.dtype} must be integers (B, S)")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given_BS)):
        # JAX would clamp or wrap them silently. With numpy: inside of `jit`, jnp traces known numbers too.
        known_BS = np.asarray(given_BS)
        wrong = known_BS[((known_BS < 0) | (known_BS >= model.vocab_size)) & (known_BS != but_for)]
        if wrong.size:
            raise UserError(f"{name} hold {wrong[0]}, which is no id of the vocabulary of {model.vocab_size}")
    return ids_BS


def sequence_ids(model: Model, ids: jax.typing.ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Return the ids of sequences as an array; raises UserError unless the model has a row for each."""
    table = None if model.front is None else model.front.ids
    if table is None:
        raise UserError("ids are given, and this model has no table of them (model.front.ids); leave them out")
    ids_B = jnp.asarray(ids)
    require_shape("ids", ids_B, shape)
    if not isinstance(ids_B, jax.core.Tracer):
        known_B = np.asarray(ids_B)
        if (wrong := known_B[(known_B < 0) | (known_B >= table.num_ids)]).size:
            raise UserError(f"ids hold {wrong[0]}, and the model has rows for {table.num_ids}")
    return ids_B


def require_shape(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    """Raise UserError unless the array has this shape."""
    if jnp.shape(array) != shape:
        raise UserError(f"{name} of shape {jnp.shape(array)} must have the shape {shape}, as tokens have it")
