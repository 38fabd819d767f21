"""Ways in which a token knows its place, against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.config.schema import LearnedPositions, NoPositions, RelativePositions
from looplm.infer.generate import generate
from looplm.model.depth import Depth
from looplm.model.functional import FunctionalLM
from looplm.model.init import Init
from looplm.model.positions import RelativePositions as Relative
from looplm.model.positions import sinusoids
from looplm.ops.attention import cached_mask, self_mask

KINDS = {"relative": RelativePositions(), "learned": LearnedPositions(length=16), "none": NoPositions()}


def scores(relative, config, q_BSNH, k_BTNH, mask):
    """Scaled scores of the module."""
    query_BSNH, bias_BNST = relative(q_BSNH, mask)
    return jnp.einsum("BSNH,BTNH->BNST", query_BSNH, k_BTNH) / config.head_size**0.5 + bias_BNST


@pytest.fixture(scope="module")
def relative(model_config):
    config = model_config(num_kv_heads=None)
    module = Relative(config, Init.of(config), rngs=nnx.Rngs(0))
    for i, vector in enumerate((module.content, module.position)):
        vector.set_value(jax.random.normal(jax.random.key(i), vector.get_value().shape))
    return config, module


def test_relative_scores_are_those_of_the_paper(relative):
    """q k + q r + u k + v r for every pair, r from the sinusoids of the distance (arXiv 1901.02860, eq. 3)."""
    config, module = relative
    B, S, N, H = 2, 5, config.num_heads, config.head_size
    q, k = (np.asarray(jax.random.normal(jax.random.key(i), (B, S, N, H))) for i in (2, 3))
    actual = scores(module, config, q, k, self_mask(config, jnp.zeros((B, S), jnp.int32)))
    kernel, u, v = (np.asarray(x.get_value()) for x in (module.kernel, module.content, module.position))
    for b, n, s in np.ndindex(B, N, S):
        for t in range(s + 1):
            half = np.arange(0, config.dim, 2) / config.dim
            angles = (s - t) / 10_000**half
            r = np.concatenate([np.sin(angles), np.cos(angles)]) @ kernel[:, n]
            expected = (q[b, s, n] + u[n]) @ k[b, t, n] + (q[b, s, n] + v[n]) @ r
            assert actual[b, n, s, t] == pytest.approx(expected / H**0.5, abs=1e-4)


def test_relative_scores_of_one_query_on_a_cache_are_those_of_the_whole(relative):
    config, module = relative
    q, k = (jax.random.normal(jax.random.key(i), (2, 5, config.num_heads, config.head_size)) for i in (2, 3))
    whole = scores(module, config, q, k, self_mask(config, jnp.zeros((2, 5), jnp.int32)))
    positions_B1 = jnp.array([[3], [4]])
    one_B1NH = jnp.take_along_axis(q, positions_B1[:, :, None, None], axis=1)
    padded = jnp.pad(k, ((0, 0), (0, 2), (0, 0), (0, 0)))
    cached = scores(module, config, one_B1NH, padded, cached_mask(config, positions_B1, 7))
    for row, position in enumerate((3, 4)):
        np.testing.assert_allclose(
            cached[row, :, 0, : position + 1], whole[row, :, position, : position + 1], atol=1e-5
        )


def test_relative_scores_have_the_type_of_the_queries(relative):
    """A table of sinusoids in float32 would make every product of the scores one in float32."""
    config, module = relative
    q_BSNH = jnp.ones((2, 5, config.num_heads, config.head_size), jnp.bfloat16)
    for array in module(q_BSNH, self_mask(config, jnp.zeros((2, 5), jnp.int32))):
        assert array.dtype == jnp.bfloat16


def test_sinusoids_of_an_odd_width():
    assert sinusoids(3, 5).shape == (3, 5)


@pytest.mark.parametrize("kind", ["relative", pytest.param("learned", marks=pytest.mark.slow), "none"])
def test_text_that_is_written_with_a_cache_is_what_whole_passes_give(kind, model_config, random_params, run_model):
    lm = FunctionalLM(model_config(positions=KINDS[kind], exit_gate=None))
    params = random_params(lm)
    prompt = np.array([3, 1, 4, 1, 5])
    (row,) = generate(
        lm,
        params,
        [prompt],
        num_loops=2,
        max_tokens=6,
        temperature=0.0,
        seed=0,
        end_ids=[],
        num_ids=lm.config.vocab_size,
    )
    # Causal: one pass over the whole text predicts every token from what precedes it.
    text_1S = jnp.array([[*prompt, *row.tokens]])
    hidden_SD = run_model(lm, params, text_1S, Depth(2)).read[-1, 0]
    predicted_S = jnp.argmax(lm.bind(params).logits(hidden_SD[None])[0], axis=-1)
    np.testing.assert_array_equal(predicted_S[len(prompt) - 1 : -1], row.tokens)


@pytest.mark.parametrize("kind", ["learned", "none"])
def test_the_order_of_tokens_matters_only_where_positions_say_so(kind, model_config, random_params, run_model):
    """With full attention and no positions, tokens that change places take their states along."""
    lm = FunctionalLM(model_config(positions=KINDS[kind], attention_mask="full", exit_gate=None))
    params, tokens_BS = random_params(lm), jnp.array([[3, 1, 4, 1, 5, 9]])
    order = jnp.array([5, 2, 0, 1, 4, 3])
    straight, permuted = (run_model(lm, params, ids_BS, Depth(2)).read for ids_BS in (tokens_BS, tokens_BS[:, order]))
    same = np.allclose(straight[:, :, order], permuted, atol=1e-4)
    assert same == (kind == "none")
