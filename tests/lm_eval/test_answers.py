"""What a model answers, against its own logits, one text after the other."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from looplm.api import LoadedLM
from looplm.errors import UserError
from looplm.lm_eval.answers import Answers
from looplm.lm_eval.encoding import fitted
from looplm.lm_eval.writing import seeds_of

DEPTHS = (1, 2, 4)
PAIRS = [("the cat", " sat"), ("the cat", " ran"), ("", "th"), ("a long context " * 9, "end"), ("x", ""), ("ab ", "c")]


@pytest.fixture(scope="module")
def answers(drawn_model: Callable, letters: Callable) -> Answers:
    """Split over two devices."""
    return Answers(drawn_model(letters()), DEPTHS, max_length=40, batch_size=4, devices=jax.devices()[:2])


def one_by_one(model: LoadedLM, ids: tuple[int, ...], num_scored: int, depth: int) -> tuple[float, bool]:
    """From the logits of a pass of its own."""
    tokens_BS = np.zeros((1, 40), np.int32)  # nobody sees what follows
    tokens_BS[0, : len(ids) - 1] = ids[:-1]
    log_p_SV = np.asarray(jax.nn.log_softmax(LOGITS(model, depth, tokens_BS)[0]), np.float64)
    places = range(len(ids) - 1 - num_scored, len(ids) - 1)
    total = sum(log_p_SV[place, ids[place + 1]] for place in places)
    return total, all(log_p_SV[place].argmax() == ids[place + 1] for place in places)


LOGITS = jax.jit(lambda model, depth, tokens_BS: model(tokens_BS, depth).logits(depth), static_argnums=(0, 1))


def test_likelihoods_are_those_of_single_passes(answers: Answers) -> None:
    expected = {
        depth: [
            one_by_one(answers.model, *fitted(answers.encoding.pair(*pair), 40), depth) if pair[1] else (0.0, True)
            for pair in PAIRS
        ]
        for depth in DEPTHS
    }
    before = answers.num_passes
    for depth in DEPTHS:
        found = answers.log_likelihoods(PAIRS, depth)
        np.testing.assert_allclose([x[0] for x in found], [x[0] for x in expected[depth]], rtol=1e-5, atol=1e-5)
        assert [x[1] for x in found] == [x[1] for x in expected[depth]]
    # Five of them have something to score: two batches for all depths.
    assert answers.num_passes - before == 2
    assert len({round(found[0][0], 3) for found in expected.values()}) == len(DEPTHS)


@pytest.mark.slow
def test_loops_that_depend_on_how_many_there_are_have_a_pass_for_every_depth(
    drawn_model: Callable, letters: Callable
) -> None:
    model = drawn_model(letters(), residual_step="inverse_loops")
    answers = Answers(model, (1, 4), max_length=40, batch_size=1, devices=jax.devices()[:1])
    (pair,) = PAIRS[:1]
    for depth in (1, 4):
        (found,) = answers.log_likelihoods([pair], depth)
        np.testing.assert_allclose(found[0], one_by_one(model, *answers.encoding.pair(*pair), depth)[0], rtol=1e-5)


def test_what_is_likeliest_is_told(answers: Answers) -> None:
    """Every continuation of one letter: one of them is what the model would write."""
    pairs = [("the cat", letter) for letter in map(chr, range(4, 128)) if letter.strip()]
    before = answers.num_passes
    for depth in DEPTHS:
        found = answers.log_likelihoods(pairs, depth)
        best = max(found)
        assert sum(answer.is_greedy for answer in found) <= 1
        assert all(answer == best for answer in found if answer.is_greedy)
    assert answers.num_passes - before == 1  # they share a row


def test_a_long_text_is_scored_in_stretches(answers: Answers) -> None:
    text = "every token of this text counts once, whatever its length" * 2
    whole = (1, *answers.encoding.inside(text))
    total = one_by_one(answers.model, whole[:41], 40, 2)[0] + one_by_one(answers.model, whole[40:81], 40, 2)[0]
    rest = len(whole) - 81
    assert 0 < rest < 40
    total += one_by_one(answers.model, whole[-41:], rest, 2)[0]
    np.testing.assert_allclose(answers.rolling([text, ""], 2), [total, 0.0], rtol=1e-5)
    # A text that writes itself what begins a document is not begun twice.
    assert answers.rolling([f"<b>{text}"], 2) == answers.rolling([text], 2)


def test_few_programs_serve_all_requests(answers: Answers) -> None:
    programs, passes = answers.num_programs, answers.num_passes
    answers.log_likelihoods([("a" * n, "b" * m) for n in range(1, 30) for m in (1, 3)], 4)
    assert answers.num_passes - passes > 10
    assert answers.num_programs - programs <= 2


@pytest.mark.slow
def test_another_depth_is_scored_when_it_is_asked(answers: Answers) -> None:
    pair = answers.encoding.pair(*PAIRS[0])
    (found,) = answers.log_likelihoods(PAIRS[:1], 3)
    np.testing.assert_allclose(found[0], one_by_one(answers.model, *pair, 3)[0], rtol=1e-5)


def test_texts_are_those_that_the_model_writes(answers: Answers) -> None:
    """Of two devices each writes a part."""
    contexts = ["the cat", "a", "a long context " * 9, "the cat"]
    found = answers.write([(context, {"until": ["\n", ""], "max_gen_toks": 6}) for context in contexts], 2)
    prompts = [answers.encoding.beginning(context)[-34:] for context in contexts[:3]]
    assert found[:3] == answers.model.generate(prompts, num_loops=2, max_tokens=6, stop=["\n"])
    assert found[3] == found[0]
    assert len(set(found)) == 3


@pytest.mark.slow
def test_copies_of_a_prompt_are_drawn_apart(drawn_model: Callable, letters: Callable) -> None:
    answers = Answers(drawn_model(letters()), [1], max_length=40, devices=jax.devices()[:1])
    found = answers.write([("the cat", {"max_gen_toks": 6, "do_sample": True})] * 3, 1)
    assert len(set(found)) == 3


def test_seeds_of_copies_differ() -> None:
    """On different devices they would have the same random stream."""
    assert seeds_of([(1, 2), (3,), (1, 2)], 5) == [5, 5, 6]


def test_a_chat_is_written_as_the_template_says(drawn_model: Callable, letters: Callable) -> None:
    template = (
        "<b>{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    answers = Answers(drawn_model(letters(), template), [1], max_length=40, devices=jax.devices()[:1])
    messages = [{"role": "user", "content": "hi"}]
    assert answers.chat(messages) == "<b>u:hi\na:"
    assert answers.encoding.beginning(answers.chat(messages))[:3] == (1, ord("u"), ord(":"))
    assert answers.chat([*messages, {"role": "assistant", "content": "so"}], asks=False) == "<b>u:hi\na:so"
    with pytest.raises(UserError, match="does not take the task's messages: the first speaks out of turn"):
        Answers(
            drawn_model(letters(), "{{ raise_exception('the first speaks out of turn') }}"), [1], max_length=40,
            devices=jax.devices()[:1],
        ).chat(messages)  # fmt: skip
    with pytest.raises(UserError, match=r"no chat template 'tools'; .* has none"):
        answers.use_template("tools")


def test_what_is_missing_is_said(drawn_model: Callable, letters: Callable) -> None:
    with pytest.raises(UserError, match="came without a tokenizer"):
        Answers(drawn_model(), [1], max_length=40)
    answers = Answers(drawn_model(letters()), [1], max_length=40, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="there is no chat template"):
        answers.chat([{"role": "user", "content": "hi"}])
    leaves = Answers(drawn_model(letters()), [1], max_length=40, exit="argmax:1", devices=jax.devices()[:1])
    with pytest.raises(UserError, match="exit=argmax:1 is of texts that are written"):
        leaves.log_likelihoods([("a", "b")], 1)
    with pytest.raises(UserError, match="longer than max_length=40"):
        answers.log_likelihoods([("a", "b" * 50)], 1)
