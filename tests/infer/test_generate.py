"""Generation with a cache against running the whole prefix again for every token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import ConcatInjection, ExitGate, Model, MoE, NormalInit, NormalState, ValueEmbedding
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import generate
from looplm.model.context import Context
from looplm.model.functional import FunctionalLM
from looplm.model.loop import Depth
from looplm.ops.attention import self_mask

VOCAB, END = 41, 40
PROMPTS = [np.arange(1, 8), np.array([5]), np.arange(9, 30, 2)]


@pytest.fixture(scope="module")
def lm():
    return FunctionalLM(
        Model(
            vocab_size=VOCAB, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=32, prelude_layers=1, block_layers=2,
            coda_layers=1, injection=ConcatInjection(), exit_gate=ExitGate(initial_exit_probability=0.3),
            init=NormalInit(std=0.3), value_embedding=ValueEmbedding(gate_channels=8),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(lm):
    params = lm.init(jax.random.key(0))
    params["gate"]["kernel"] = jax.random.normal(jax.random.key(1), params["gate"]["kernel"].shape)
    return params


def without_cache(lm, params, prompt, num_loops, threshold, max_tokens):
    """One sequence, everything recomputed for every token."""

    @jax.jit
    def logits(tokens_1S):
        positions_1S = jnp.arange(tokens_1S.shape[1])[None]
        model = lm.bind(params)
        output = model(
            tokens_1S, Context(positions_1S, self_mask(lm.config, jnp.zeros_like(tokens_1S))), Depth(num_loops),
            dtype=jnp.float32, exit_threshold=threshold,
        )  # fmt: skip
        return model.logits(output.hidden_RBSD[-1])

    room = np.zeros((1, len(prompt) + max_tokens), np.int32)
    room[0, : len(prompt)] = prompt
    for position in range(len(prompt), room.shape[1]):
        room[0, position] = int(jnp.argmax(logits(room)[0, position - 1]))
        if room[0, position] == END:
            return room[0, len(prompt) : position]
    return room[0, len(prompt) :]


@pytest.mark.parametrize(("num_loops", "threshold"), [(1, None), (3, None), (4, 0.6)])
def test_batch_with_cache_equals_single_sequences_without(lm, params, num_loops, threshold):
    options = dict(
        num_loops=num_loops,
        exit_threshold=threshold,
        max_tokens=12,
        temperature=0.0,
        seed=0,
        end_ids=[END],
        num_ids=VOCAB,
    )
    texts = generate(lm, params, PROMPTS, **options)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        np.testing.assert_array_equal(text, without_cache(lm, params, prompt, num_loops, threshold, 12))
    assert len({tuple(text) for text in texts}) == len(PROMPTS), "the prompts matter"


def test_sampling_follows_the_distribution_and_the_seed(lm, params):
    options = dict(num_loops=2, exit_threshold=None, max_tokens=1, end_ids=[END], num_ids=VOCAB)
    many = [np.array([3])] * 4000
    drawn = np.concatenate(
        [x if len(x) else [END] for x in generate(lm, params, many, temperature=2.0, seed=1, **options)]
    )
    again = generate(lm, params, many, temperature=2.0, seed=1, **options)
    np.testing.assert_array_equal(drawn, np.concatenate([x if len(x) else [END] for x in again]))
    context = Context(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool))
    model = lm.bind(params)
    hidden_BSD = model(jnp.array([[3]]), context, Depth(2), dtype=jnp.float32).hidden_RBSD[-1]
    expected_V = jax.nn.softmax(model.logits(hidden_BSD)[0, 0] / 2.0)
    shares_V = np.bincount(drawn, minlength=VOCAB) / len(drawn)
    assert np.all(np.abs(shares_V - expected_V) < 5 * np.sqrt(expected_V * (1 - expected_V) / 4000) + 1e-3)


@pytest.fixture(scope="module")
def crowded():
    """A model whose experts take half of their mean load in training, with a drawn first state."""
    experts = MoE(num_experts=4, experts_per_token=1, expert_dim=16, capacity_factor=0.5)
    lm = FunctionalLM(
        Model(
            vocab_size=VOCAB, dim=32, num_heads=4, hidden_dim=32, block_layers=1, state_init=NormalState(),
            injection=ConcatInjection(), init=NormalInit(std=0.3), feed_forward=experts,
        )
    )  # fmt: skip
    return lm, lm.init(jax.random.key(0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_depends_on_no_neighbour_and_no_order(crowded, temperature):
    lm, params = crowded
    long = np.tile(np.arange(1, 30), 3)
    rows = partial(
        generate, lm, params, num_loops=2, exit_threshold=None, max_tokens=12, temperature=temperature, seed=3,
        end_ids=[END], num_ids=VOCAB,
    )  # fmt: skip
    together, reversed_ = rows([*PROMPTS, long]), rows([long, *PROMPTS[::-1]])
    for number, prompt in enumerate(PROMPTS):
        (alone,) = rows([prompt])
        np.testing.assert_array_equal(together[number], alone)
        np.testing.assert_array_equal(reversed_[-1 - number], alone)


def test_copies_of_a_prompt_are_answered_differently(crowded):
    lm, params = crowded
    options = dict(num_loops=1, exit_threshold=None, max_tokens=12, temperature=1.0, end_ids=[END], num_ids=VOCAB)
    texts = {seed: generate(lm, params, PROMPTS[:1] * 8, seed=seed, **options) for seed in (0, 1)}
    assert len({tuple(text) for rows in texts.values() for text in rows}) == 16


def test_a_row_ends_at_the_first_of_its_end_tokens(lm, params):
    options = dict(num_loops=1, exit_threshold=None, max_tokens=24, temperature=1.0, seed=0, num_ids=VOCAB)
    (text,) = generate(lm, params, PROMPTS[:1], end_ids=[], **options)
    assert len(text) == 24
    ends = [int(text[9]), int(text[5])]
    (cut,) = generate(lm, params, PROMPTS[:1], end_ids=ends, **options)
    np.testing.assert_array_equal(cut, text[: np.flatnonzero(np.isin(text, ends))[0]])


def test_exit_rules_are_read():
    assert parse_exit("gate:0.9", has_gate=True) == 0.9
    assert parse_exit(None, has_gate=False) is None


def test_ids_that_the_tokenizer_does_not_know_are_never_written(lm, params):
    options = dict(num_loops=1, exit_threshold=None, max_tokens=32, temperature=9.0, seed=0, end_ids=[2], num_ids=5)
    assert max(int(row.max()) for row in generate(lm, params, [np.array([3])] * 8, **options) if len(row)) < 5
