"""Rows of tokens into the places of a layout, and back; each is the other's gradient, so that neither scatters.

A token has k places, or fewer where some are dropped; a place holds one token, or none.
"""

from functools import partial

import jax
import jax.numpy as jnp


def spread(x_nD: jax.Array, token_M: jax.Array, places_nk: jax.Array, *, full: bool = False) -> jax.Array:
    """The row of the token at every place, (M, D).

    Args:
        token_M: whose row stands at a place; n where none does, which gives 0.
        places_nk: the places of every token, its inverse; M for one that was dropped.
        full: no place is empty and nothing was dropped, so that nothing has to be masked.
    """
    return _spread("promise_in_bounds" if full else "fill", x_nD, token_M, places_nk)


def collect(y_MD: jax.Array, token_M: jax.Array, places_nk: jax.Array, *, full: bool = False) -> jax.Array:
    """The sum over the places of every token, (n, D); arguments as of `spread`."""
    return _collect("promise_in_bounds" if full else "fill", y_MD, token_M, places_nk)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(mode: str, x_nD: jax.Array, token_M: jax.Array, places_nk: jax.Array) -> jax.Array:
    return x_nD.at[token_M].get(mode=mode, fill_value=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _collect(mode: str, y_MD: jax.Array, token_M: jax.Array, places_nk: jax.Array) -> jax.Array:
    return jnp.sum(y_MD.at[places_nk].get(mode=mode, fill_value=0), axis=1, dtype=y_MD.dtype)


_spread.defvjp(
    lambda mode, x, token, places: (_spread(mode, x, token, places), (token, places)),
    lambda mode, saved, cotangent: (_collect(mode, cotangent, *saved), None, None),
)
_collect.defvjp(
    lambda mode, y, token, places: (_collect(mode, y, token, places), (token, places)),
    lambda mode, saved, cotangent: (_spread(mode, cotangent, *saved), None, None),
)


def sorted_places(group_nk: jax.Array, num_groups: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Places in the order of groups, and in it of tokens: (choice_M, places_nk, sizes_E), M = n k.

    Args:
        group_nk: of every choice of every token.

    Returns:
        choice_M: number of the choice at a place; choice // k is its token.
        sizes_E: places of every group.
    """
    n, k = group_nk.shape
    choice_M = jnp.argsort(group_nk.reshape(-1), stable=True)
    places_M = jnp.zeros_like(choice_M).at[choice_M].set(jnp.arange(n * k, dtype=choice_M.dtype), unique_indices=True)
    sizes_E = jnp.sum(group_nk.reshape(-1, 1) == jnp.arange(num_groups), axis=0, dtype=jnp.int32)
    return choice_M, places_M.reshape(n, k), sizes_E


def limited_places(
    group_nk: jax.Array, num_groups: int, capacity: int, taken_E: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """`capacity` places for every group, earlier tokens first: (choice_M, places_nk), M = num_groups * capacity.

    Args:
        group_nk: num_groups for a choice that wants no place.
        taken_E: how many places of a group are not to be had.

    Returns:
        choice_M: as of `sorted_places`; n k where a place stays empty.
        places_nk: M for a choice that got none.
    """
    n, k = group_nk.shape
    chosen_mE = group_nk.reshape(-1, 1) == jnp.arange(num_groups)
    before_mE = jnp.cumsum(chosen_mE, axis=0, dtype=jnp.int32) - 1
    rank_m = jnp.sum(jnp.where(chosen_mE, before_mE, 0), axis=1)
    fits_m = jnp.sum(jnp.where(chosen_mE, before_mE + taken_E, 0), axis=1) < capacity
    size = num_groups * capacity
    place_m = jnp.where(fits_m, group_nk.reshape(-1) * capacity + rank_m, size)
    empty_M = jnp.full_like(place_m, n * k, shape=(size,))
    return empty_M.at[place_m].set(jnp.arange(n * k, dtype=place_m.dtype), mode="drop"), place_m.reshape(n, k)
