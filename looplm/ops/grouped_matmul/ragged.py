"""XLA's own grouped product: a kernel on TPU and GPU; on a CPU it is masked dense work over all groups."""

import jax
from jax.lax import RaggedDotDimensionNumbers

_MATRICES = RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=()
)
_TRANSPOSED = RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=(0,)
)


def of_rows(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transposed: bool = False) -> jax.Array:
    if transposed:
        return jax.lax.ragged_dot_general(x_MD, w_EDF, sizes_E, _TRANSPOSED)
    return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)


def of_matrices(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot_general(x_MD, y_MF, sizes_E, _MATRICES)
