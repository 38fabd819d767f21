"""Exits from one pass are those of the rules themselves; controls are what drawing and trying out give."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import (
    ACTHalting,
    ConcatInjection,
    Data,
    ExitGate,
    Loop,
    Mesh,
    Model,
    NormalInit,
    Optim,
    PHop,
    Run,
)
from looplm.errors import UserError
from looplm.eval.exit_choice import exit_loop, parse_swept, thresholds
from looplm.eval.exit_sweep import Comparison, _safe
from looplm.eval.exit_tokens import ExitTokens, Tokens
from looplm.eval.score import Scorer
from looplm.infer.exit_rule import parse_exit
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from looplm.sharding.mesh import build_mesh

R = 4
CONFIG = Model(
    vocab_size=29, dim=16, num_heads=2, hidden_dim=16, prelude_layers=1, block_layers=1, coda_layers=1,
    injection=ConcatInjection(), exit_gate=ExitGate(initial_exit_probability=0.3), init=NormalInit(std=0.4),
)  # fmt: skip
RUN = Run(
    num_steps=1,
    optim=Optim(learning_rate=1e-3),
    model=CONFIG,
    loop=Loop(num_loops=R),
    data=Data(train=PHop(), sequence_length=64, batch_tokens=64),
)


@pytest.fixture(scope="module")
def passed():
    """(model, parameters, batch, what was gathered of it)."""
    lm, draw = FunctionalLM(CONFIG), np.random.default_rng(0)
    params = lm.init(jax.random.key(3))
    params["gate"]["kernel"] = jax.random.normal(jax.random.key(4), params["gate"]["kernel"].shape)
    mesh = build_mesh(Mesh(data=2), jax.devices()[:2])
    batch = {"tokens": draw.integers(0, 29, (6, 20)), "labels": draw.integers(0, 29, (6, 20))}
    batch |= {"segments": np.ones((6, 20)), "positions": np.tile(np.arange(20), (6, 1))}
    batch |= {"documents": np.repeat(np.arange(6) // 2, 20).reshape(6, 20)}
    batch = {name: np.int32(array) for name, array in batch.items()}
    batch["labels"][:, -1] = -100
    score = Scorer(lm, mesh, R + 1, tempered=True, signals=True)
    layout = jax.tree.map(lambda leaf: leaf.sharding, lm.abstract(mesh))
    gathered = ExitTokens(R, 1, 120)
    scores = score(jax.tree.map(jax.device_put, params, layout), batch)
    gathered.add(batch, scores)
    return lm, params, batch, gathered.tokens(), scores


@pytest.mark.parametrize(
    "text",
    ["gate:0.6", "kl:0.5,patience=2", "latent:0.9,min=2+entropy:2.9", "argmax:2|confidence:0.3"],
)
def test_a_token_leaves_where_the_rule_lets_it(text, passed):
    lm, params, batch, tokens, _ = passed
    rule = parse_exit(text, CONFIG)

    @jax.jit
    def exits(params):
        model = lm.bind(params)
        context = Context(batch["positions"], self_mask(CONFIG, jnp.asarray(batch["segments"])))
        forward = Forward(model, batch["tokens"], context, Depth(R), jnp.float32, halting=rule.build(model))
        return forward().halt.exit_BS + 1

    expected_N = np.asarray(exits(params))[:, :-1].ravel()
    assert len(np.unique(expected_N)) > 1
    np.testing.assert_array_equal(exit_loop(rule, tokens), expected_N)


def test_scores_with_signals_are_those_without(passed):
    """And the loss at the temperature 1 is the loss."""
    lm, params, batch, _, scores = passed
    mesh = build_mesh(Mesh(data=1), jax.devices()[:1])
    layout = jax.tree.map(lambda leaf: leaf.sharding, lm.abstract(mesh))
    plain = Scorer(lm, mesh, R + 1)(jax.tree.map(jax.device_put, params, layout), batch)
    np.testing.assert_allclose(scores.nll_RBS, plain.nll_RBS, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.correct_RBS, plain.correct_RBS)
    np.testing.assert_allclose(scores.tempered_RBSK[..., 7], plain.nll_RBS, rtol=1e-4, atol=1e-4)
    assert plain.signals is None


def test_loops_that_depend_on_their_number_have_a_pass_for_every_depth(passed):
    _, params, batch, _, scores = passed
    lm, mesh = (
        FunctionalLM(CONFIG.model_copy(update={"residual_step": "inverse_loops"})),
        build_mesh(Mesh(data=2), jax.devices()[:2]),
    )
    params = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, lm.abstract(mesh))
    several, one = (Scorer(lm, mesh, depth, tempered=True)(params, batch) for depth in (2, 1))
    np.testing.assert_allclose(several.nll_RBS[:1], one.nll_RBS, rtol=1e-5)
    np.testing.assert_allclose(several.tempered_RBSK[:1], one.tempered_RBSK, rtol=1e-4, atol=1e-5)
    assert several.nll_RBS.shape == (2, 6, 20)
    assert np.abs(several.nll_RBS[1] - scores.nll_RBS[1]).max() > 1e-3


def test_what_a_halting_rule_reads_of_all_loops_is_scored(passed):
    batch = passed[2]
    config = CONFIG.model_copy(update={"halting": ACTHalting(initial_bias=-1.0), "exit_gate": None})
    lm, mesh = FunctionalLM(config), build_mesh(Mesh(data=2), jax.devices()[:2])
    params = lm.init(jax.random.key(5))

    @partial(jax.jit, static_argnums=0)
    def logits(depth):
        model = lm.bind(params)
        context = Context(batch["positions"], self_mask(config, jnp.asarray(batch["segments"])))
        return model.logits(Forward(model, batch["tokens"], context, Depth(depth), jnp.float32)("last").read[-1])

    laid_out = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, lm.abstract(mesh))
    scores = Scorer(lm, mesh, 3)(laid_out, batch)
    for depth in (1, 2, 3):
        log_p_BSV = np.asarray(jax.nn.log_softmax(logits(depth)))
        nll_BS = -np.take_along_axis(log_p_BSV, batch["labels"].clip(0)[..., None], -1)[..., 0]
        np.testing.assert_allclose(scores.nll_RBS[depth - 1][:, :-1], nll_BS[:, :-1], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"model\.halting=act depend on how many"):
        parse_swept(["all"], RUN.model_copy(update={"model": config}))


@pytest.fixture(scope="module")
def small():
    """Seven tokens of two documents at three depths."""
    draw = np.random.default_rng(1)
    nll_RN = draw.gamma(2, size=(3, 7)) + np.array([[1.0], [0.5], [0.0]])
    best_RN = draw.integers(0, 3, (3, 7))
    correct_RN = draw.integers(0, 2, (3, 7)).astype(bool)
    scores = {"confidence": draw.uniform(size=(3, 7))}
    return Tokens(np.array([0, 0, 0, 0, 1, 1, 1]), nll_RN, correct_RN, best_RN, scores)


def test_controls_are_what_drawing_gives(small):
    exit_N, draw, every_N = np.array([1, 1, 2, 3, 3, 2, 1]), np.random.default_rng(0), np.arange(7)
    point, _ = Comparison(small, is_task=True).point("confidence:0.5", exit_N)
    random, shuffled = [], []
    for _ in range(20000):
        random.append(small.nll_RN[draw.permutation(exit_N) - 1, every_N].mean())
        within_N = np.concatenate([draw.permutation(exit_N[:4]), draw.permutation(exit_N[4:])])
        shuffled.append(small.nll_RN[within_N - 1, every_N].mean())
    assert point.controls.random == pytest.approx(np.mean(random), abs=0.02)
    assert point.controls.shuffled == pytest.approx(np.mean(shuffled), abs=0.02)
    assert point.loss == pytest.approx(small.nll_RN[exit_N - 1, every_N].mean())
    assert point.excess == pytest.approx(point.loss - small.nll_RN[2].mean())
    assert (point.depth_p50, point.depth_p90, point.depth_p99) == (2, 3, 3)
    right_N = small.correct_RN[exit_N - 1, every_N]
    assert point.solved == np.mean([right_N[:4].all(), right_N[4:].all()])
    assert point.disagreement == np.mean(small.best_RN[exit_N - 1, every_N] != small.best_RN[2])


def test_nothing_is_better_than_the_oracle(small):
    """All ways to leave, tried out: none is below the oracle's curve, and its points are on the hull."""
    comparison, every_N = Comparison(small, is_task=False), np.arange(7)
    found: dict[int, float] = {}
    for way in product((1, 2, 3), repeat=7):
        exit_N = np.array(way)
        loss = small.nll_RN[exit_N - 1, every_N].mean()
        found[exit_N.sum()] = min(loss, found.get(exit_N.sum(), np.inf))
    for loops, loss in found.items():
        assert comparison._oracle_at(loops / 7) <= loss + 0.05
    for point in comparison.oracle:
        assert point.loss == pytest.approx(found[round(point.mean_depth * 7)])


def test_thresholds_are_tested_deepest_first_until_one_fails():
    assert _safe(np.array([0.0, 0.01, 0.03, 0.015]), (0.02, 0.001, 0.05)) == {0.001: 0, 0.02: 1, 0.05: 3}
    assert _safe(np.array([0.3, 0.0]), (0.02,)) == {}


def test_swept_rules_have_thresholds_that_the_command_line_takes(passed):
    tokens, rules = passed[3], parse_swept(["all", "kl,min=2", "gate:0.5"], RUN)
    assert list(rules) == ["gate", "confidence", "argmax", "kl", "latent", "entropy", "kl,min=2", "gate:0.5"]
    comparison = Comparison(tokens, is_task=False)
    for sweep in comparison.sweep(rules, CONFIG, (0.02,)):
        depths = [point.mean_depth for point in sweep.points]
        assert depths == sorted(depths, reverse=True)
        assert all(parse_exit(point.rule, CONFIG) for point in sweep.points)
        assert all(point.excess_low <= point.excess <= point.excess_high for point in sweep.points)
        if sweep.name in ("latent", "entropy", "confidence"):
            assert depths[0] > R - 0.5
            assert depths[-1] < 1.5
    assert thresholds("argmax", tokens) == ["argmax:4", "argmax:3", "argmax:2", "argmax:1"]


@pytest.mark.parametrize("text", ["never", "gate:2", "kl,often=2"])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(UserError, match="exit rule"):
        parse_swept([text], RUN)
