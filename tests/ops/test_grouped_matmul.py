"""Every backend against a loop over the groups in numpy: values, gradients, empty groups, rows beyond the last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.ops.grouped_matmul import BACKENDS, grouped_matmul

M, D, F = 200, 12, 20
SIZES = {"uneven": [50, 0, 87, 13, 40], "one": [0, 0, 200, 0, 0], "few": [1, 2, 0, 3, 0], "none": [0, 0, 0, 0, 0]}


def by_hand(x_MD, w_EDF, sizes):
    rows, start = [], 0
    for w_DF, size in zip(w_EDF, sizes, strict=True):
        rows.append(x_MD[start : start + size] @ w_DF)
        start += size
    return np.concatenate([*rows, np.zeros((len(x_MD) - start, w_EDF.shape[2]))])


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend):
    generator = np.random.default_rng(0)
    x_MD, w_EDF, y_MF = (generator.normal(size=shape) for shape in ((M, D), (5, D, F), (M, F)))

    @jax.jit
    def run(x_MD, w_EDF, y_MF, sizes_E):
        product = lambda x, w: grouped_matmul(x, w, sizes_E, backend=backend)  # noqa: E731
        value, pull_back = jax.vjp(product, x_MD, w_EDF)
        return value, *pull_back(y_MF)

    for name, sizes in SIZES.items():
        arrays = (jnp.float32(x) for x in (x_MD, w_EDF, y_MF))
        value, dx_MD, dw_EDF = run(*arrays, jnp.asarray(sizes, jnp.int32))
        np.testing.assert_allclose(value, by_hand(x_MD, w_EDF, sizes), atol=1e-5, err_msg=name)
        np.testing.assert_allclose(dx_MD, by_hand(y_MF, w_EDF.swapaxes(1, 2), sizes), atol=2e-5, err_msg=name)
        ends = np.cumsum(sizes)
        expected = [x_MD[end - size : end].T @ y_MF[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        np.testing.assert_allclose(dw_EDF, expected, atol=5e-5, err_msg=name)


def test_the_platform_of_the_program_decides():
    """A program for a TPU that is lowered here has XLA's kernel in it."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in
              (((M, D), jnp.float32), ((3, D, F), jnp.float32), ((3,), jnp.int32))]  # fmt: skip
    traced = jax.jit(grouped_matmul).trace(*shapes)
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu")}
    assert "while" in texts["cpu"]
    assert "ragged" not in texts["cpu"]
    assert "ragged" in texts["tpu"]


def test_sums_over_many_rows_of_bfloat16_are_float32():
    """4000 rows of 1 in one group: bfloat16 would stop counting at 256."""
    ones = jnp.ones((4000, 1), jnp.bfloat16)
    product = lambda w: jnp.sum(grouped_matmul(ones, w, jnp.array([4000]), backend="blocks").astype(jnp.float32))  # noqa: E731
    assert jax.grad(product)(jnp.ones((1, 1, 1), jnp.bfloat16)) == pytest.approx(4000, rel=0.01)
