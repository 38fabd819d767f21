"""What is drawn from, against sorting by hand; and the same draws in whatever batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.errors import UserError
from looplm.infer.options import check_step_size, make_sampling, parse_contrast
from looplm.infer.sampling import Sampling

V, MANY = 12, 4000
LOGITS = np.random.default_rng(3).normal(size=V).astype(np.float32) * 2


def drawn(sampling, logits=LOGITS, tokens=(), position=50):
    """Which ids are drawn, and how often."""
    tokens_NT = np.tile(np.array([*tokens, 0], np.int32), (MANY, 1))
    ids = sampling.draw(
        jnp.tile(jnp.asarray(logits), (MANY, 1)), jnp.arange(MANY, dtype=jnp.uint32), jnp.full(MANY, position),
        jnp.asarray(tokens_NT),
    )  # fmt: skip
    return np.bincount(ids, minlength=V) / MANY


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def kept_by_top_p(p, share):
    order = np.argsort(-p)
    count = np.searchsorted(np.cumsum(p[order]), share) + 1
    return set(order[:count].tolist())


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (dict(top_k=3), set(np.argsort(-LOGITS)[:3].tolist())),
        (dict(top_p=0.8), kept_by_top_p(softmax(LOGITS), 0.8)),
        (dict(top_p=1e-6), {int(LOGITS.argmax())}),
        (dict(min_p=0.2), set(np.flatnonzero(softmax(LOGITS) >= 0.2 * softmax(LOGITS).max()).tolist())),
        (dict(top_k=5, top_p=0.9, min_p=0.01), None),
        (dict(), set(range(V))),
    ],
)
def test_only_these_tokens_are_drawn_with_their_probabilities(options, kept):
    if kept is None:  # one after the other, each on what is left
        p = softmax(np.where(np.argsort(np.argsort(-LOGITS)) < 5, LOGITS, -np.inf))
        kept = kept_by_top_p(p, 0.9)
    p = np.where(np.isin(np.arange(V), list(kept)), softmax(LOGITS), 0)
    p /= p.sum()
    shares = drawn(Sampling(temperature=1.0, **options))
    assert not shares[p == 0].any()
    assert np.all(np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / MANY) + 1e-3)


def test_a_temperature_flattens():
    p = softmax(LOGITS / 3)
    assert np.all(np.abs(drawn(Sampling(temperature=3.0)) - p) < 5 * np.sqrt(p * (1 - p) / MANY))


def test_tokens_that_are_there_count_less_and_those_behind_do_not():
    held = np.argsort(-LOGITS)[:2]
    expected = LOGITS.copy()
    for i in held:
        expected[i] = expected[i] / 4 if expected[i] > 0 else expected[i] * 4
    penalised = Sampling(repetition_penalty=4.0)
    assert drawn(penalised, tokens=held)[expected.argmax()] == 1
    assert drawn(penalised, tokens=held, position=0)[LOGITS.argmax()] == 1


def test_the_likeliest_of_equal_ones_is_the_first():
    logits = jnp.array([[0.0, 2.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    ids = Sampling().draw(logits, jnp.zeros(2, jnp.uint32), jnp.zeros(2, jnp.int32), jnp.zeros((2, 1), jnp.int32))
    np.testing.assert_array_equal(ids, jnp.argmax(logits, axis=-1))


def test_draws_are_those_of_jax():
    """Streams and positions have keys of their own."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 7), 9)
    ids = Sampling(temperature=1.0).draw(
        jnp.asarray(LOGITS)[None], jnp.array([7], jnp.uint32), jnp.array([9]), jnp.zeros((1, 1), jnp.int32)
    )
    assert int(ids[0]) == int(jax.random.categorical(key, LOGITS))


@pytest.mark.parametrize(
    "options", [dict(top_k=0), dict(top_p=0.0), dict(min_p=1.5), dict(repetition_penalty=0.0), dict(temperature=-1.0)]
)
def test_values_out_of_range_are_refused(options):
    ((name, _),) = options.items()
    with pytest.raises(UserError, match=f"{name}="):
        make_sampling(**(dict(temperature=1.0) | options))


@pytest.mark.parametrize("text", ["1", "0:0.5", "4:0.5", "x:1", "1:nan"])
def test_a_contrast_that_cannot_be_is_refused(text):
    with pytest.raises(UserError, match="contrast"):
        parse_contrast(text, 4)


def test_a_step_that_overshoots_is_refused():
    with pytest.raises(UserError, match="step_size=2"):
        check_step_size(2.0)
