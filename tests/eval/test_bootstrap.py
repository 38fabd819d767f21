"""Bootstrap intervals against theory."""

import numpy as np
import pytest

from looplm.eval.bootstrap import interval, resampled_means


def test_interval_of_a_mean_is_that_of_the_normal_law():
    generator = np.random.default_rng(0)
    values_G = generator.normal(3.0, 2.0, 400)
    low, high = interval(resampled_means(values_G[:, None], np.ones(400)))
    assert (low[0] + high[0]) / 2 == pytest.approx(values_G.mean(), abs=0.03)
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * values_G.std() / 20, rel=0.1)


def test_documents_are_resampled_whole_and_weighted_by_length():
    sums_GR = np.array([[10.0, 0.0], [300.0, 100.0]])
    means = resampled_means(sums_GR, np.array([10.0, 100.0]))
    np.testing.assert_allclose(np.unique(means[:, 0].round(9)), np.unique(np.round([1, 310 / 110, 3], 9)))
    np.testing.assert_allclose(means[:, 1], (means[:, 0] - 1) / 2 * 1.0, atol=1e-9)


def test_many_documents_are_pooled_and_empty_ones_ignored():
    counts_G = np.tile([0.0, 2.0], 5000)
    means = resampled_means(counts_G[:, None] * 1.5, counts_G)
    np.testing.assert_allclose(means, 1.5)
