"""What `looplm.load` gives: shapes, and mistakes that would otherwise be silent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import looplm
from looplm.api import LoadedLM
from looplm.errors import UserError
from looplm.infer.continuation import Written


@pytest.fixture(scope="module")
def lm(finished_run):
    return looplm.load(finished_run)


@pytest.fixture(scope="module")
def tokens_BS():
    return jax.random.randint(jax.random.key(0), (2, 9), 0, 300)


def test_results_are_the_same_eagerly_and_under_jit(lm, tokens_BS):
    eager, jitted = lm(tokens_BS, num_loops=4), jax.jit(lambda tokens: lm(tokens, num_loops=4))(tokens_BS)
    np.testing.assert_allclose(jitted.logits(4), eager.logits(4), atol=1e-5)
    mixed = sum(eager.exit_RBS[t, :, :, None] * eager.logits(t + 1) for t in range(4))
    np.testing.assert_allclose(jitted.expected_logits(), mixed, atol=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, pytest.param(jnp.asarray, marks=pytest.mark.slow), np.ndarray.tolist])
def test_ids_that_a_jitted_function_closes_over_are_looked_into(lm, tokens_BS, kind):
    tokens_BS = np.array(tokens_BS)
    tokens, labels = kind(tokens_BS), kind(np.where(tokens_BS < 100, tokens_BS, -100))
    expected = lm(tokens).logits(2), lm.loss_and_grads(tokens, labels)[0]
    found = jax.jit(lambda: (lm(tokens).logits(2), lm.loss_and_grads(tokens, labels)[0]))()
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    too_large = kind(tokens_BS + lm.model.vocab_size)
    with pytest.raises(UserError, match="which is no id of the vocabulary of 384"):
        jax.jit(lambda: lm(too_large).logits(1))()


def test_logits_are_capped(lm, tokens_BS):
    capped = LoadedLM(lm.model.model_copy(update={"logit_softcap": 0.1}), lm.loop, lm.objective, lm.params)
    expected, out = lm(tokens_BS, num_loops=3), capped(tokens_BS, num_loops=3)
    logits = [0.1 * np.tanh(expected.logits(t + 1) / 0.1) for t in range(3)]
    np.testing.assert_allclose(out.logits(2), logits[1], atol=1e-5)
    mixed = sum(expected.exit_RBS[t, :, :, None] * logits[t] for t in range(3))
    np.testing.assert_allclose(out.expected_logits(), mixed, atol=1e-5)


def test_detached_loops_are_run_but_not_returned(lm, tokens_BS):
    whole, part = lm(tokens_BS, num_loops=4), lm(tokens_BS, num_loops=4, num_detached=2)
    assert part.hidden_RBSD.shape[0] == 2
    np.testing.assert_allclose(part.logits(3), whole.logits(3), atol=1e-5)


def test_first_state_can_be_given(lm, tokens_BS):
    state = jax.random.normal(jax.random.key(1), (2, 9, lm.model.dim))
    first, second = (lm(tokens_BS, num_loops=1, initial_state=scale * state).logits(1) for scale in (1, 2))
    assert not np.allclose(first, second)


def test_gradients_have_the_structure_of_the_parameters_and_ignore_masked_labels(lm, tokens_BS):
    labels_BS = jnp.roll(tokens_BS, -1, axis=1).at[:, -1].set(-100)
    loss, grads = lm.loss_and_grads(tokens_BS, labels_BS)
    assert jax.tree.structure(grads) == jax.tree.structure(lm.params)
    ignored, _ = lm.loss_and_grads(tokens_BS, jnp.full_like(labels_BS, -100))
    assert loss > 1
    assert ignored == 0


@pytest.mark.parametrize("loops", [dict(num_loops=0), dict(num_loops=-1), dict(num_loops=2, num_detached=2)])
def test_impossible_depths_are_refused(lm, tokens_BS, loops):
    with pytest.raises(UserError, match="num_loops="):
        lm(tokens_BS, **loops)


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_depths_that_were_not_computed_are_refused(lm, tokens_BS, depth):
    with pytest.raises(UserError, match="holds 2 to 4"):
        lm(tokens_BS, num_loops=4, num_detached=1).logits(depth)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 8), int), r"labels of shape \(2, 8\) must have the shape \(2, 9\)"),
        (np.zeros((2, 9, 1), int), r"labels of shape \(2, 9, 1\) and type int32 must be integers \(B, S\)"),
        (np.zeros((2, 9)), "labels of shape .* and type float32 must be integers"),
        (np.full((2, 9), 384), "labels hold 384, which is no id of the vocabulary of 384"),
        (np.full((2, 9), -1), "labels hold -1, which is no id"),
    ],
)
def test_labels_that_do_not_fit_are_refused(lm, tokens_BS, labels, message):
    with pytest.raises(UserError, match=message):
        lm.loss_and_grads(tokens_BS, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(tokens_BS=np.zeros(9, int)), r"tokens of shape \(9,\)"),
        (dict(tokens_BS=np.zeros((2, 0), int)), r"tokens of shape \(2, 0\)"),
        (dict(tokens_BS=np.full((2, 9), -1)), "tokens hold -1"),
        (dict(segments=np.zeros((2, 8), int)), r"segments of shape \(2, 8\) must have the shape \(2, 9\)"),
        (dict(initial_state=np.zeros((2, 9, 3))), r"initial_state of shape .* must have the shape \(2, 9, 16\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(lm, tokens_BS, arguments, message):
    with pytest.raises(UserError, match=message):
        lm(**{"tokens_BS": tokens_BS, **arguments})


def test_an_objective_that_needs_a_gate_is_refused_without_one(lm, tokens_BS):
    gateless = LoadedLM(lm.model.model_copy(update={"exit_gate": None}), lm.loop, lm.objective, lm.params)
    with pytest.raises(UserError, match="'expected' needs an exit gate"):
        gateless.loss_and_grads(tokens_BS, tokens_BS)


@pytest.mark.parametrize("prompts", [[], "abc"])
def test_prompts_must_be_a_list(lm, prompts):
    with pytest.raises(UserError, match="list"):
        lm.generate(prompts)


def test_a_continuation_and_its_prompt_are_the_text(lm, monkeypatch):
    tokens = lm.tokenizer.encode(" x y")
    written = Written(tokens, np.arange(len(tokens)))
    monkeypatch.setattr("looplm.infer.generate.Generation.__iter__", lambda _: iter(enumerate([written, written])))
    texts = lm.generate(["a b", lm.tokenizer.encode("a b")])
    assert texts == [" x y", " x y"]
    for text in texts:
        np.testing.assert_array_equal((text.tokens, text.loops), written)


def test_prompts_are_texts_or_ids(lm):
    text = "def f(x):"
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(text).tolist()]
    assert lm.generate([text, ids], max_tokens=8)[0] == lm.generate([ids], max_tokens=8)[0]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"shape \(0,\)"), ([[1]], r"shape \(1, 1\)"), ([0.5], "float64"), ([384], "holds 384"), ([-1], "holds -1")
    ],
)  # fmt: skip
def test_prompts_that_are_neither_are_refused(lm, prompt, message):
    with pytest.raises(UserError, match=message):
        lm.generate([prompt])


def test_one_checkpoint_of_a_run_is_loaded_by_its_folder(lm, finished_run, tokens_BS, monkeypatch):
    first = looplm.load(finished_run / "checkpoints" / "2")
    assert (first.step, lm.step) == (2, 3)
    expected = looplm.load(finished_run, step=2)
    np.testing.assert_array_equal(first(tokens_BS).logits(3), expected(tokens_BS).logits(3))
    monkeypatch.chdir(finished_run / "checkpoints")
    assert looplm.load("2").step == 2
    with pytest.raises(UserError, match=r"step=3 is not that of 2; leave it out, or give .*"):
        looplm.load("2", step=3)
