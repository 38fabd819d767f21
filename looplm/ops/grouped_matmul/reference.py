"""A loop over the groups: every row times every matrix, and what does not belong is masked."""

import jax
import jax.numpy as jnp

from looplm.ops.scopes import needed


def of_rows(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transposed: bool = False) -> jax.Array:
    equation = "MF,DF->MD" if transposed else "MD,DF->MF"
    with needed(1 / sizes_E.shape[0]):
        products = [
            jnp.where(mask_M1, jnp.einsum(equation, x_MD, w_DF), 0)
            for mask_M1, w_DF in zip(_masks(x_MD, sizes_E), w_EDF, strict=True)
        ]
    return sum(products[1:], start=products[0])


def of_matrices(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    with needed(1 / sizes_E.shape[0]):
        return jnp.stack([jnp.einsum("MD,MF->DF", jnp.where(m, x_MD, 0), y_MF) for m in _masks(x_MD, sizes_E)])


def _masks(x_MD: jax.Array, sizes_E: jax.Array) -> list[jax.Array]:
    """(M, 1) for every group."""
    row_M1 = jnp.arange(x_MD.shape[0])[:, None]
    ends_E = jnp.cumsum(sizes_E)
    return [(row_M1 >= end - size) & (row_M1 < end) for end, size in zip(ends_E, sizes_E, strict=True)]
