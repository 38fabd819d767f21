"""Attention and its masks against loops over queries and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Model
from looplm.ops.attention import attention, cached_mask, reference, self_mask

CAUSAL = Model(vocab_size=2, dim=8, num_heads=2, hidden_dim=8, block_layers=1)


def allowed(kind, window, s, t, prefix):
    """The rule for one pair of tokens of a document."""
    past = t <= s or kind == "full" or (kind == "prefix" and prefix[t])
    return past and (window is None or abs(s - t) < window)


@pytest.mark.parametrize("kind", ["causal", "prefix", "full"])
@pytest.mark.parametrize("window", [None, 3])
def test_masks_follow_their_rule_within_documents(kind, window):
    config = CAUSAL.model_copy(update={"attention_mask": kind, "attention_window": window})
    segments_BS, prefix_BS = np.array([[1, 1, 1, 1, 2, 2, 2, 0]]), np.array([[1, 1, 0, 0, 1, 0, 0, 0]], bool)
    mask_BST = self_mask(config, jnp.asarray(segments_BS), jnp.asarray(prefix_BS)).dense(8)
    for s, t in np.ndindex(8, 8):
        expected = segments_BS[0, s] == segments_BS[0, t] and allowed(kind, window, s, t, prefix_BS[0])
        assert bool(mask_BST[0, s, t]) == expected, (s, t)


@pytest.mark.parametrize("backend", [attention, reference.attention], ids=["xla", "reference"])
def test_grouped_attention_equals_its_definition(backend):
    B, S, N, K, H = 2, 7, 4, 2, 6
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (B, S, n, H)) for key, n in zip(keys, (N, K, K), strict=True))
    segments_BS = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]])
    actual = backend(q, k, v, self_mask(CAUSAL, segments_BS))
    for b, s, n in np.ndindex(B, S, N):
        seen = [t for t in range(s + 1) if segments_BS[b, t] == segments_BS[b, s]]
        scores = np.array([np.dot(q[b, s, n], k[b, t, n // 2]) for t in seen]) / np.sqrt(H)
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(actual[b, s, n], weights @ np.array([v[b, t, n // 2] for t in seen]), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_a_query_with_a_cache_sees_what_it_would_see_in_the_whole_sequence(window):
    config = CAUSAL.model_copy(update={"attention_window": window})
    whole_ST = self_mask(config, jnp.zeros((1, 8), jnp.int32)).dense(8)[0]
    positions_BS = jnp.array([[0, 1], [4, 5], [6, 7], [2, 3]])
    np.testing.assert_array_equal(cached_mask(config, positions_BS, 8).dense(2), whole_ST[positions_BS])


def test_a_cached_query_sees_slots_up_to_its_position():
    mask_BST = cached_mask(CAUSAL, jnp.array([[0, 1], [4, 5]]), 6).dense(2)
    np.testing.assert_array_equal(mask_BST.sum(axis=-1), [[1, 2], [5, 6]])
    assert bool(mask_BST[1, 0, 4])
    assert not bool(mask_BST[1, 0, 5])
