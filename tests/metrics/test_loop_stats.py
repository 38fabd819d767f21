"""Loop statistics against their definitions, pair by pair."""

import jax
import numpy as np

from looplm.metrics.loop_stats import loop_statistics


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_statistics_equal_their_definitions():
    before_BSD, after_BSD = (np.asarray(jax.random.normal(jax.random.key(i), (2, 4, 6))) for i in (0, 1))
    state_norm_BS, residual_rel_BS, token_correlation_B = loop_statistics(before_BSD, after_BSD)
    for b in range(2):
        for s in range(4):
            now, change = after_BSD[b, s], after_BSD[b, s] - before_BSD[b, s]
            np.testing.assert_allclose(state_norm_BS[b, s], np.sqrt(np.mean(now**2)), rtol=1e-5)
            np.testing.assert_allclose(residual_rel_BS[b, s], np.linalg.norm(change) / np.linalg.norm(now), rtol=1e-5)
        pairs = [cosine(after_BSD[b, s], after_BSD[b, t]) for s in range(4) for t in range(4) if s != t]
        np.testing.assert_allclose(token_correlation_B[b], np.mean(pairs), atol=1e-5)


def test_equal_tokens_are_a_collapse():
    state_BSD = np.ones((1, 5, 3), np.float32)
    np.testing.assert_allclose(loop_statistics(state_BSD, 2 * state_BSD).token_correlation_B, 1.0, rtol=1e-5)
