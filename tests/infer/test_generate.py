"""Generation with a cache against running the whole prefix again for every token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import (
    ConcatInjection,
    ExitGate,
    Model,
    MoE,
    NormalInit,
    NormalState,
    TrajectoryConditioning,
    ValueEmbedding,
)
from looplm.errors import UserError
from looplm.infer.cache import new_cache, parse_policy
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import generate
from looplm.infer.items import Engine
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask

VOCAB, END = 41, 40
PROMPTS = [np.arange(1, 8), np.array([5]), np.arange(9, 30, 2)]


def build(coda_layers):
    lm = FunctionalLM(
        Model(
            vocab_size=VOCAB, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=32, prelude_layers=1, block_layers=2,
            coda_layers=coda_layers, injection=ConcatInjection(), exit_gate=ExitGate(initial_exit_probability=0.3),
            init=NormalInit(std=0.3), value_embedding=ValueEmbedding(gate_channels=8),
        )
    )  # fmt: skip
    params = lm.init(jax.random.key(0))
    params["gate"]["kernel"] = jax.random.normal(jax.random.key(1), params["gate"]["kernel"].shape)
    return lm, params


@pytest.fixture(scope="module")
def built():
    """With and without a coda."""
    return {coda: build(coda) for coda in (0, 1)}


@pytest.fixture(scope="module")
def lm(built):
    return built[1][0]


@pytest.fixture(scope="module")
def params(built):
    return built[1][1]


def without_cache(lm, params, prompts, num_loops, rule, max_tokens):
    """One sequence after the other, everything recomputed for every token."""

    @jax.jit
    def logits(tokens_1S):
        positions_1S = jnp.arange(tokens_1S.shape[1])[None]
        model = lm.bind(params)
        context = Context(positions_1S, self_mask(lm.config, jnp.zeros_like(tokens_1S)))
        halting = parse_exit(rule, lm.config).build(model) if rule else None
        return model.logits(
            Forward(model, tokens_1S, context, Depth(num_loops), jnp.float32, halting=halting)().read[0]
        )

    def continued(prompt):
        # Of one length for all prompts, so that one program is compiled; nobody sees what follows.
        room, end = np.zeros((1, max(map(len, prompts)) + max_tokens), np.int32), len(prompt) + max_tokens
        room[0, : len(prompt)] = prompt
        for position in range(len(prompt), end):
            room[0, position] = int(jnp.argmax(logits(room)[0, position - 1]))
            if room[0, position] == END:
                return room[0, len(prompt) : position]
        return room[0, len(prompt) : end]

    return [continued(prompt) for prompt in prompts]


def texts(lm, params, prompts, *, exit=None, **options):
    """The tokens of every row."""
    options = dict(max_tokens=12, temperature=0.0, seed=0, end_ids=[END], num_ids=VOCAB) | options
    return [row.tokens for row in generate(lm, params, prompts, exit=parse_exit(exit, lm.config), **options)]


# A rule that asks the head sees in a coda the earlier tokens at their exits, and not at its own loop: no coda there.
RULES = {
    "gate:0.6": 1,
    "latent:0.7": 1,
    "kl:0.05,patience=2|confidence:0.5": 0,
    "entropy:2.9+argmax:2": 0,
    "confidence:0.3,min=3": 0,
}
NEAR_OTHERS = ("latent:0.7", "kl:0.05,patience=2|confidence:0.5", "entropy:2.9+argmax:2")


@pytest.mark.parametrize(
    ("num_loops", "rule", "coda"),
    [
        (3, None, 1),
        pytest.param(1, None, 1, marks=pytest.mark.slow),
        *(
            pytest.param(4, rule, coda, marks=pytest.mark.slow if rule in NEAR_OTHERS else [])
            for rule, coda in RULES.items()
        ),
    ],
)
def test_batch_with_cache_equals_single_sequences_without(built, num_loops, rule, coda):
    lm, params = built[coda]
    rows = texts(lm, params, PROMPTS, num_loops=num_loops, exit=rule, kv="each")
    for expected, row in zip(without_cache(lm, params, PROMPTS, num_loops, rule, 12), rows, strict=True):
        np.testing.assert_array_equal(row, expected)
    assert len({tuple(row) for row in rows}) == len(PROMPTS), "the prompts matter"


@pytest.mark.slow
@pytest.mark.parametrize("rule", [None, "gate:0.6"])
def test_parts_of_every_loop_write_with_a_cache_what_they_write_without(rule):
    experts = MoE(num_experts=4, experts_per_token=2, expert_dim=16, router_loops=3)
    sizes = dict(vocab_size=VOCAB, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=32, block_layers=2)
    gate, init = ExitGate(initial_exit_probability=0.3), NormalInit(std=0.3)
    own = dict(attention_loops=2, norm_loops=3, feed_forward=experts)
    lm = FunctionalLM(Model(**sizes, **own, exit_gate=gate, init=init, injection=ConcatInjection()))
    params = lm.init(jax.random.key(0))
    rows = texts(lm, params, PROMPTS, num_loops=4, exit=rule, kv="each")
    for expected, row in zip(without_cache(lm, params, PROMPTS, 4, rule, 12), rows, strict=True):
        np.testing.assert_array_equal(row, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("num_loops", "rule"), [(3, None), (4, "latent:0.6")])
def test_steps_of_a_trajectory_write_with_a_cache_what_they_write_without(num_loops, rule):
    sizes = dict(vocab_size=VOCAB, dim=16, num_heads=2, hidden_dim=16, prelude_layers=1, block_layers=1, coda_layers=1)
    lm, random = FunctionalLM(Model(**sizes, conditioning=TrajectoryConditioning(features=8))), np.random.default_rng(0)
    params = lm.map(lambda leaf, _: jnp.float32(0.4 * random.normal(size=leaf.shape)), lm.shapes)
    rows = texts(lm, params, PROMPTS, num_loops=num_loops, exit=rule, kv="each")
    for expected, row in zip(without_cache(lm, params, PROMPTS, num_loops, rule, 12), rows, strict=True):
        np.testing.assert_array_equal(row, expected)
    assert len({tuple(row) for row in rows}) == len(PROMPTS), "the prompts matter"


def test_sampling_follows_the_distribution_and_the_seed(lm, params):
    many = [np.array([3])] * 4000
    drawn, again = (
        np.concatenate(
            [
                x if len(x) else [END]
                for x in texts(lm, params, many, num_loops=2, max_tokens=1, temperature=2.0, seed=1)
            ]
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(drawn, again)
    zeros_11 = jnp.zeros((1, 1), jnp.int32)
    model, context = lm.bind(params), Context(zeros_11, self_mask(lm.config, zeros_11))
    hidden_BSD = Forward(model, jnp.array([[3]]), context, Depth(2), jnp.float32)().read[0]
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


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_a_row_depends_on_no_neighbour_and_no_order(crowded, temperature):
    lm, params = crowded
    long = np.tile(np.arange(1, 30), 3)
    rows = partial(texts, lm, params, num_loops=2, temperature=temperature, seed=3)
    together, reversed_ = rows([*PROMPTS, long]), rows([long, *PROMPTS[::-1]])
    for number, prompt in enumerate(PROMPTS):
        (alone,) = rows([prompt])
        np.testing.assert_array_equal(together[number], alone)
        np.testing.assert_array_equal(reversed_[-1 - number], alone)


def test_copies_of_a_prompt_are_answered_differently(crowded):
    lm, params = crowded
    drawn = [texts(lm, params, PROMPTS[:1] * 8, num_loops=1, temperature=1.0, seed=seed) for seed in (0, 1)]
    assert len({tuple(row) for rows in drawn for row in rows}) == 16


def test_a_row_ends_at_the_first_of_its_end_tokens(lm, params):
    options = dict(num_loops=1, max_tokens=24, temperature=1.0)
    (text,) = texts(lm, params, PROMPTS[:1], end_ids=[], **options)
    assert len(text) == 24
    ends = [int(text[9]), int(text[5])]
    (cut,) = texts(lm, params, PROMPTS[:1], end_ids=ends, **options)
    np.testing.assert_array_equal(cut, text[: np.flatnonzero(np.isin(text, ends))[0]])


def test_ids_that_the_tokenizer_does_not_know_are_never_written(lm, params):
    options = dict(num_loops=1, max_tokens=32, temperature=9.0, end_ids=[2], num_ids=5)
    assert max(int(row.max()) for row in texts(lm, params, [np.array([3])] * 8, **options) if len(row)) < 5


def at_depths(lm, params, prompts, rule, **options):
    """(tokens, loops) of every row, where leaving saves loops."""
    options = dict(num_loops=4, max_tokens=12, temperature=0.0, seed=0, end_ids=[], num_ids=VOCAB) | options
    return generate(lm, params, prompts, exit=parse_exit(rule, lm.config), **options)


LEAVING = ("gate:0.6", "latent:0.7", "kl:0.2|confidence:0.5")
POLICIES = ("ragged", "ring:2", "last")


@pytest.mark.parametrize(
    ("kv", "rule"),
    [pytest.param(kv, rule, marks=pytest.mark.slow) for kv in POLICIES for rule in LEAVING],
)
def test_rows_that_leave_at_different_loops_do_not_depend_on_one_another(lm, params, rule, kv):
    """In the default suite rows by depth do not differ from rows in step: test_policies.py, test_schedulers.py."""
    together = at_depths(lm, params, PROMPTS, rule, kv=kv)
    for prompt, row in zip(PROMPTS, together, strict=True):
        (alone,) = at_depths(lm, params, [prompt], rule, kv=kv)
        np.testing.assert_array_equal(row.tokens, alone.tokens)
        np.testing.assert_array_equal(row.loops, alone.loops)
    if rule.startswith("gate"):
        loops = np.array([row.loops for row in together])
        assert (loops != loops[0]).any(), "the rows leave at different loops"


@pytest.mark.parametrize("exact", [False, True])
def test_in_loops_after_its_last_a_token_stands_as_it_was_in_its_last(lm, params, exact):
    """The keys and values of one token a row; an exact cache has those of every loop."""
    num_loops, num_rows = 4, 8

    @jax.jit
    def decoded(params):
        model = lm.bind(params)
        engine = Engine(
            model, parse_exit("gate:0.6", lm.config).build(model), num_loops, jnp.float32, 2, VOCAB,
            jnp.zeros(num_rows, jnp.uint32), exact=exact,
        )  # fmt: skip
        policy = parse_policy("each" if exact else "ragged", num_loops)
        cache = new_cache(lm.config, batch_size=num_rows, length=2, policy=policy, dtype=jnp.float32)
        zeros_B1 = jnp.zeros((num_rows, 1), jnp.int32)
        items, cache = engine.enter(cache, jnp.arange(num_rows)[:, None], zeros_B1, zeros_B1 == 0)
        for _ in range(num_loops):
            items, cache = engine.advance(cache, items, together=True)
        return engine.leave(cache, items)[1].block, engine.loops(items)[:, 0] - 1

    block, exit_B = jax.device_get(decoded(params))
    assert exit_B.min() + 1 < exit_B.max()
    for kept in (block.keys.numbers, block.values.numbers):
        for row, last in enumerate(exit_B):
            own_RLKH = kept[:, :, row, :, 0]
            ran = num_loops if exact else last + 1
            assert all((own_RLKH[t] != own_RLKH[:t]).any(axis=(1, 2, 3)).all() for t in range(1, ran))
            np.testing.assert_array_equal(own_RLKH[ran:], np.broadcast_to(own_RLKH[last], own_RLKH[ran:].shape))


@pytest.mark.parametrize(
    ("rule", "bias", "loops"), [("gate:0.9", 100, 1), pytest.param("latent:1e-30", 0, 4, marks=pytest.mark.slow)]
)
def test_where_all_leave_together_the_text_is_that_of_so_many_loops(lm, params, rule, bias, loops):
    certain = params | {"gate": params["gate"] | {"bias": params["gate"]["bias"] + bias}}
    rows = at_depths(lm, certain, PROMPTS, rule)
    for row, expected in zip(rows, texts(lm, params, PROMPTS, num_loops=loops, end_ids=[]), strict=True):
        np.testing.assert_array_equal(row.tokens, expected)
        np.testing.assert_array_equal(row.loops, loops)


def test_a_prompt_whose_tokens_leave_is_read_as_if_it_had_been_written(lm, params):
    """What a text of one token was continued by is, as a prompt, continued in the same way."""
    rule = "gate:0.6"
    options = dict(prompt_exits=True, max_tokens=24)
    (whole,) = at_depths(lm, params, [np.array([7])], rule, **options)
    prompts = [np.array([7, *whole.tokens[:length]]) for length in (4, 11)]
    for prompt, row in zip(prompts, at_depths(lm, params, prompts, rule, **options | {"max_tokens": 12}), strict=True):
        later = slice(len(prompt) - 1, len(prompt) + 11)
        np.testing.assert_array_equal(row.tokens, whole.tokens[later])
        np.testing.assert_array_equal(row.loops, whole.loops[later])
    exact = at_depths(lm, params, prompts, rule, max_tokens=12)
    assert any(
        (row.tokens != whole.tokens[len(p) - 1 : len(p) + 11]).any() for row, p in zip(exact, prompts, strict=True)
    )
    assert len(set(whole.loops.tolist())) > 1


@pytest.mark.parametrize(
    ("options", "message"), [(dict(rule=None), "needs an exit rule"), (dict(kv="each"), "use kv=ragged")]
)
def test_exits_of_a_prompt_that_save_nothing_are_refused(lm, params, options, message):
    with pytest.raises(UserError, match=message):
        at_depths(lm, params, PROMPTS, **dict(rule="gate:0.6") | options, prompt_exits=True)
