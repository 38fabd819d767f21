"""Normalisation against numpy in float64, in what a TPU computes in too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.ops.norm import layer_norm, rms_norm

ROUNDED = {"float32": 1e-6, "bfloat16": 2**-8}
"""The relative error of a number that is rounded once."""


@pytest.fixture(params=["float32", "bfloat16"])
def x_SD(request: pytest.FixtureRequest) -> jax.Array:
    """Far from zero: sums of squares of 4096 such numbers in bfloat16 stop growing."""
    return (3 + jax.random.normal(jax.random.key(0), (5, 4096))).astype(request.param)


def test_rms_is_rounded_once(x_SD: jax.Array) -> None:
    scale_D = np.linspace(-1, 2, 4096, dtype=np.float32)
    exact = np.float64(x_SD) / np.sqrt(np.mean(np.float64(x_SD) ** 2, axis=-1, keepdims=True) + 1e-3) * scale_D
    found = rms_norm(x_SD, jnp.asarray(scale_D), eps=1e-3)
    assert found.dtype == x_SD.dtype
    np.testing.assert_allclose(np.float64(found), exact, rtol=ROUNDED[str(x_SD.dtype)])


def test_layer_norm_is_rounded_once(x_SD: jax.Array) -> None:
    scale_D, bias_D = np.linspace(1, 2, 4096, dtype=np.float32), np.linspace(5, 6, 4096, dtype=np.float32)
    centred = np.float64(x_SD) - np.mean(np.float64(x_SD), axis=-1, keepdims=True)
    exact = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-3) * scale_D + bias_D
    found = layer_norm(x_SD, jnp.asarray(scale_D), jnp.asarray(bias_D), eps=1e-3)
    assert found.dtype == x_SD.dtype
    np.testing.assert_allclose(np.float64(found), exact, rtol=2 * ROUNDED[str(x_SD.dtype)], atol=1e-5)


def test_dims_that_are_normalised_together_are_one() -> None:
    x_SNH = jax.random.normal(jax.random.key(1), (3, 4, 6))
    np.testing.assert_allclose(rms_norm(x_SNH, num_dims=2).reshape(3, 24), rms_norm(x_SNH.reshape(3, 24)), rtol=1e-6)
    assert np.all(np.isfinite(rms_norm(jnp.zeros((2, 4)))))
