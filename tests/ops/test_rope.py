"""Rotary positions against complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import LinearScaling, RampScaling, Rope
from looplm.ops.rope import frequencies, rotary


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_pairs_are_turned_by_position_times_frequency(layout):
    x_BSNH = np.float32(jax.random.normal(jax.random.key(0), (2, 5, 3, 8)))
    positions_BS = np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 2]])
    actual = np.asarray(rotary(jnp.asarray(x_BSNH), jnp.asarray(positions_BS), Rope(theta=100.0, layout=layout)))
    for b, s, n, i in np.ndindex(2, 5, 3, 4):
        first, second = (i, i + 4) if layout == "half" else (2 * i, 2 * i + 1)
        pair = complex(x_BSNH[b, s, n, first], x_BSNH[b, s, n, second])
        turned = pair * np.exp(1j * positions_BS[b, s] * 100.0 ** (-2 * i / 8))
        np.testing.assert_allclose(actual[b, s, n, [first, second]], [turned.real, turned.imag], atol=1e-5)


def test_late_positions_turn_bfloat16_as_float64() -> None:
    """A position beyond 256 is no number of bfloat16, and an angle of thousands none with a fraction."""
    x_BSNH = jax.random.normal(jax.random.key(0), (1, 3, 1, 8)).astype(jnp.bfloat16)
    positions_BS = np.array([[257, 4099, 100_003]])
    found = rotary(x_BSNH, jnp.asarray(positions_BS), Rope())
    first, second = np.split(np.float64(x_BSNH)[0, :, 0], 2, axis=-1)
    turned = (first + 1j * second) * np.exp(1j * positions_BS[0, :, None] * 10_000.0 ** (-np.arange(4) / 4))
    assert found.dtype == jnp.bfloat16
    # 0.01 of an angle of 100,000 is float32's, the rest one rounding.
    np.testing.assert_allclose(
        np.float64(found)[0, :, 0], np.concatenate([turned.real, turned.imag], axis=-1), rtol=2**-8, atol=0.02
    )


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_a_part_of_a_head_turns_as_a_head_of_that_size(layout):
    """82 dims, as in MoEUT 44M: of the first 41, 40 turn."""
    x_BSNH = jax.random.normal(jax.random.key(0), (2, 5, 3, 82))
    positions_BS = jnp.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 2]])
    found = rotary(x_BSNH, positions_BS, Rope(layout=layout, fraction=0.5))
    np.testing.assert_array_equal(found[..., 40:], x_BSNH[..., 40:])
    np.testing.assert_array_equal(found[..., :40], rotary(x_BSNH[..., :40], positions_BS, Rope(layout=layout)))


def test_linear_scaling_divides_positions():
    plain, scaled = Rope(), Rope(scaling=LinearScaling(factor=4.0))
    np.testing.assert_allclose(frequencies(scaled, 16), frequencies(plain, 16) / 4)


def test_ramp_keeps_short_waves_and_stretches_long_ones():
    """The rule as published: by wavelength against original_length / factor, with a linear ramp between."""
    config = Rope(theta=500_000.0, scaling=RampScaling(factor=8.0, original_length=8192))
    for plain, scaled in zip(frequencies(Rope(theta=500_000.0), 128), frequencies(config, 128), strict=True):
        wavelength = 2 * np.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192:
            expected = plain / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert scaled == pytest.approx(expected, rel=1e-12)
