"""For a CPU: group after group, its rows in blocks. Only blocks that hold rows are computed.

The last block of a group may reach into the rows of the next ones. Groups are written in order, so what it wrote there
is overwritten; where rows are summed up they are masked.
"""

import jax
import jax.numpy as jnp

from looplm.ops.scopes import done

SMALLEST, LARGEST = 16, 128


def of_rows(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transposed: bool = False) -> jax.Array:
    block = _block_size(x_MD, sizes_E)
    blocks_of_a_group = x_MD.shape[0] / (block * sizes_E.shape[0])
    padded_MD = jnp.pad(x_MD, ((0, block), (0, 0)))
    contracted = (((1,), (1 if transposed else 0,)), ((), ()))
    width = w_EDF.shape[1 if transposed else 2]

    def group(y: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        w_DF, start, size = xs

        def one(i: jax.Array, y: jax.Array) -> jax.Array:
            first = start + i * block
            rows = jax.lax.dynamic_slice_in_dim(padded_MD, first, block)
            return jax.lax.dynamic_update_slice_in_dim(y, jax.lax.dot_general(rows, w_DF, contracted), first, axis=0)

        with done(blocks_of_a_group):
            return jax.lax.fori_loop(0, -(-size // block), one, y), None

    ends_E = jnp.cumsum(sizes_E)
    y, _ = jax.lax.scan(
        group, jnp.zeros_like(x_MD, shape=(padded_MD.shape[0], width)), (w_EDF, ends_E - sizes_E, sizes_E)
    )
    row_M1 = jnp.arange(x_MD.shape[0])[:, None]
    return jnp.where(row_M1 < ends_E[-1], y[: x_MD.shape[0]], 0)


def of_matrices(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    block = _block_size(x_MD, sizes_E)
    blocks_of_a_group = x_MD.shape[0] / (block * sizes_E.shape[0])
    padded_MD, padded_MF = (jnp.pad(rows, ((0, block), (0, 0))) for rows in (x_MD, y_MF))

    def group(_: None, xs: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        start, size = xs

        def one(i: jax.Array, total_DF: jax.Array) -> jax.Array:
            rows_D, rows_F = (
                jax.lax.dynamic_slice_in_dim(rows, start + i * block, block) for rows in (padded_MD, padded_MF)
            )
            ours_D = jnp.where(jnp.arange(block)[:, None] < size - i * block, rows_D, 0)
            more = jax.lax.dot_general(ours_D, rows_F, (((0,), (0,)), ((), ())), preferred_element_type=total_DF.dtype)
            return total_DF + more

        # Summed over blocks in float32, whatever the type of the rows.
        wide = jnp.promote_types(x_MD.dtype, jnp.float32)
        zeros_DF = jnp.zeros_like(x_MD, wide, shape=(x_MD.shape[1], y_MF.shape[1]))
        with done(blocks_of_a_group):
            total_DF = jax.lax.fori_loop(0, -(-size // block), one, zeros_DF)
        return None, total_DF.astype(x_MD.dtype)

    return jax.lax.scan(group, None, (jnp.cumsum(sizes_E) - sizes_E, sizes_E))[1]


def _block_size(x_MD: jax.Array, sizes_E: jax.Array) -> int:
    """About a quarter of the rows that a group has on average: little is computed in vain, and products stay large."""
    mean = max(x_MD.shape[0] // sizes_E.shape[0], 1)
    return min(max(1 << (mean // 4).bit_length(), SMALLEST), LARGEST)
