"""Loop statistics against their definitions, token by token and pair by pair."""

import jax
import numpy as np

from looplm.metrics.loop_stats import LoopStatistics, loop_statistics, scored_sums


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_statistics_equal_their_definitions():
    earlier_BSD, before_BSD, state_BSD = (
        np.asarray(jax.random.normal(jax.random.key(i), (2, 4, 6))) for i in (0, 1, 2)
    )
    result = loop_statistics(state_BSD, before_BSD, earlier_BSD)
    for b in range(2):
        for s in range(4):
            now, update = state_BSD[b, s], state_BSD[b, s] - before_BSD[b, s]
            update_cosine = cosine(update, before_BSD[b, s] - earlier_BSD[b, s])
            np.testing.assert_allclose(result.state_norm_BS[b, s], np.sqrt(np.mean(now**2)), rtol=1e-5)
            ratio = np.linalg.norm(update) / np.linalg.norm(now)
            np.testing.assert_allclose(result.residual_rel_BS[b, s], ratio, rtol=1e-5)
            np.testing.assert_allclose(result.update_cosine_BS[b, s], update_cosine, atol=1e-5)
        pairs = [cosine(state_BSD[b, s], state_BSD[b, t]) for s in range(4) for t in range(4) if s != t]
        np.testing.assert_allclose(result.token_correlation_B[b], np.mean(pairs), atol=1e-5)


def test_tokens_are_alike_or_not_whatever_the_padding_is():
    states = np.array(jax.random.normal(jax.random.key(0), (3, 2, 7, 6)))
    states[..., 2, :] = states[..., 5:, :] = 1e3
    counted_S = np.array([True, True, False, True, True, False, False])
    found = loop_statistics(*states, counted_BS=np.array([counted_S, ~counted_S]))
    for b, real in enumerate((counted_S, ~counted_S)):
        alone = loop_statistics(*states[:, b : b + 1, real])
        np.testing.assert_allclose(found.token_correlation_B[b], alone.token_correlation_B[0], rtol=1e-5)
        np.testing.assert_allclose(found.residual_rel_BS[b, real], alone.residual_rel_BS[0], rtol=1e-5)


def test_equal_tokens_are_a_collapse():
    state_BSD = np.ones((1, 5, 3), np.float32)
    np.testing.assert_allclose(loop_statistics(2 * state_BSD, state_BSD, state_BSD).token_correlation_B, 1.0, rtol=1e-5)


def test_an_update_without_one_before_it_has_no_direction_in_common():
    state_BSD = np.ones((1, 5, 3), np.float32)
    np.testing.assert_array_equal(loop_statistics(2 * state_BSD, state_BSD, state_BSD).update_cosine_BS, 0.0)


def test_only_scored_tokens_count():
    values_BS, values_B = np.arange(6.0).reshape(2, 3), np.array([10.0, 20.0])
    scored_BS = np.array([[True, False, True], [False, True, False]])
    sums = scored_sums(LoopStatistics(values_BS, values_BS + 1, values_BS + 2, values_B), scored_BS)
    assert sums["loop/state_norm"] == 0 + 2 + 4
    assert sums["loop/residual_rel"] == 1 + 3 + 5
    assert sums["loop/update_cosine"] == 2 + 4 + 6
    assert sums["loop/token_correlation"] == 10 + 10 + 20
