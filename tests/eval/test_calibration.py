"""Temperatures for every depth: measured on the device at some, fitted on one half, applied to the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from looplm.eval.calibration import calibrated
from looplm.eval.reading import INVERSE_TEMPERATURES, _tempered


@pytest.fixture(scope="module")
def logits():
    """Three depths that are overconfident, right and shy: 40 documents of 30 tokens, V = 23."""
    draw = np.random.default_rng(0)
    true_GSV = draw.normal(size=(40, 30, 23)) * 2
    labels_GS = (true_GSV + draw.gumbel(size=true_GSV.shape)).argmax(axis=-1)
    return np.stack([true_GSV * sharpness for sharpness in (3.0, 1.0, 0.6)], axis=2), labels_GS


def losses(logits_GSRV, labels_GS, inverse):
    """By document and depth, summed."""
    z = logits_GSRV * inverse
    label = np.take_along_axis(z, labels_GS[:, :, None, None], axis=-1)[..., 0]
    return (np.log(np.exp(z).sum(axis=-1)) - label).sum(axis=1)


def test_losses_at_all_temperatures_are_those_of_divided_logits(logits):
    logits_GSV, labels_GS = logits[0][:, :, 0], logits[1]
    label_GS = np.take_along_axis(logits_GSV, labels_GS[..., None], axis=-1)[..., 0]
    found_GSK = jax.jit(_tempered)(jnp.float32(logits_GSV), jnp.float32(label_GS))
    for k, inverse in enumerate(INVERSE_TEMPERATURES):
        expected_GS = np.log(np.exp(logits_GSV * inverse).sum(axis=-1)) - label_GS * inverse
        np.testing.assert_allclose(found_GSK[..., k], expected_GS, rtol=2e-5, atol=2e-5)


def test_a_half_is_scored_at_the_temperature_that_is_best_on_the_other(logits):
    tempered_GRK = np.stack([losses(*logits, inverse) for inverse in INVERSE_TEMPERATURES], axis=-1)
    losses_GR, temperatures_2R = calibrated(tempered_GRK, np.full(40, 30.0))
    for half in (0, 1):
        for depth in range(3):
            fitted, scored = slice(1 - half, None, 2), slice(half, None, 2)

            def loss(inverse, part=fitted, depth=depth):
                return losses(logits[0][part, :, depth : depth + 1], logits[1][part], inverse).sum()

            best = minimize_scalar(loss, bounds=(0.125, 2), method="bounded").x
            assert temperatures_2R[half, depth] == pytest.approx(1 / best, rel=1e-2)
            expected_G1 = losses(logits[0][scored, :, depth : depth + 1], logits[1][scored], best)
            np.testing.assert_allclose(losses_GR[scored, depth], expected_G1[:, 0], rtol=1e-3)
    assert temperatures_2R.mean(axis=0) == pytest.approx([3.0, 1.0, 0.6], rel=0.1)


def test_one_document_has_no_halves():
    assert calibrated(np.ones((1, 2, 16)), np.ones(1)) is None
