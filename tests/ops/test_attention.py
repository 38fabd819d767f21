"""Attention and its masks against loops over queries and heads."""

import jax
import jax.numpy as jnp
import numpy as np

from looplm.ops.attention import attention, cached_mask, causal_mask


def test_grouped_attention_equals_its_definition():
    B, S, N, K, H = 2, 7, 4, 2, 6
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (B, S, n, H)) for key, n in zip(keys, (N, K, K), strict=True))
    segments_BS = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]])
    actual = attention(q, k, v, causal_mask(segments_BS))
    for b, s, n in np.ndindex(B, S, N):
        seen = [t for t in range(s + 1) if segments_BS[b, t] == segments_BS[b, s]]
        scores = np.array([np.dot(q[b, s, n], k[b, t, n // 2]) for t in seen]) / np.sqrt(H)
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(actual[b, s, n], weights @ np.array([v[b, t, n // 2] for t in seen]), atol=1e-5)


def test_a_cached_query_sees_slots_up_to_its_position():
    mask_BST = cached_mask(jnp.array([[0, 1], [4, 5]]), 6)
    np.testing.assert_array_equal(mask_BST.sum(axis=-1), [[1, 2], [5, 6]])
    assert bool(mask_BST[1, 0, 4])
    assert not bool(mask_BST[1, 0, 5])
