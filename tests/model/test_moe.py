"""A layer with experts against every token through its experts in a Python loop: forward, all gradients, drops."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.config.schema import Balance, Model, MoE
from looplm.model.context import Context
from looplm.model.depth import Loop
from looplm.model.init import Init
from looplm.model.moe import MoE as Layer
from looplm.model.report import Reporting
from looplm.model.router import Router
from looplm.model.routing import kept_choices
from looplm.ops.attention import self_mask

B, S, D = 2, 6, 8
CASES = {
    "softmax": MoE(num_experts=5, experts_per_token=2, expert_dim=6),
    "not_renormalised": MoE(num_experts=5, experts_per_token=2, expert_dim=6, renormalise=False),
    "sigmoid_shared": MoE(num_experts=5, experts_per_token=3, expert_dim=6, scores="sigmoid", shared_dim=7),
    "sigma": MoE(num_experts=40, experts_per_token=4, expert_dim=3, expert="relu", scores="sigmoid", renormalise=False),
    "biased": MoE(
        num_experts=5, experts_per_token=2, expert_dim=6, loop_biases=3, balance=Balance(bias_rate=0.1, z_loss_weight=1)
    ),
    "limited": MoE(num_experts=5, experts_per_token=2, expert_dim=6, capacity_factor=0.7),
    "roomy": MoE(num_experts=5, experts_per_token=2, expert_dim=6, capacity_factor=5.0),
}


def model(moe):
    return Model(vocab_size=8, dim=D, num_heads=2, hidden_dim=9, block_layers=1, feed_forward=moe)


def context(loop=0):
    empty = jnp.zeros((B, S), jnp.int32)
    return Context(
        empty, self_mask(model(CASES["softmax"]), empty), loop=Loop(jnp.array([loop]), jnp.array([1])),
        reporting=Reporting(routing=True), with_capacity=True,
    )  # fmt: skip


class Built(NamedTuple):
    graph: nnx.GraphDef
    params: dict
    x_BSD: jax.Array


def build(moe, seed=0):
    """With drawn parameters; `init` would have to be compiled."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Layer(model(moe), moe, Init.of(model(moe)), rngs=nnx.Rngs(0))))
    draw = np.random.default_rng(seed)

    def normal(shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    params = jax.tree.map(lambda leaf: normal(leaf.shape) * 0.7, nnx.to_pure_dict(state))
    return Built(graph, params, normal((B, S, D)))


def run(built, params, x_BSD, loop=0):
    state = nnx.state(nnx.eval_shape(lambda: nnx.merge(built.graph, nnx.State(params))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(built.graph, state)(x_BSD, x_BSD, context(loop))


class Choices(NamedTuple):
    experts: np.ndarray
    """(B, S, k), the best first."""
    fits: np.ndarray
    """(B, S, k), False where the capacity left no place."""


def scores(moe, router, x_BSD, loop):
    logits_BSE = jnp.einsum("BSD,DE->BSE", x_BSD, router["kernel"])
    row = min(loop, max(moe.loop_biases, 1) - 1)
    if moe.loop_biases:
        logits_BSE += router["loop_bias"][row]
    return jax.nn.softmax(logits_BSE) if moe.scores == "softmax" else jax.nn.sigmoid(logits_BSE)


def choose(moe, router, x_BSD, loop=0):
    wanted_BSE = np.asarray(scores(moe, router, x_BSD, loop))
    if moe.balance.bias_rate:
        wanted_BSE = wanted_BSE + np.asarray(router["balance_bias"][min(loop, max(moe.loop_biases, 1) - 1)])
    experts = np.argsort(-wanted_BSE, axis=-1, kind="stable")[..., : moe.experts_per_token]
    fits, room = np.ones(experts.shape, bool), S
    if moe.capacity_factor:
        room = math.ceil(moe.capacity_factor * S * moe.experts_per_token / moe.num_experts)
    for b in range(B):
        used = np.zeros(moe.num_experts, int)
        for s in range(S):
            fits[b, s] = used[experts[b, s]] < room
            used[experts[b, s]] += 1
    return Choices(experts, fits)


def by_loop(moe, params, x_BSD, choices, loop=0):
    """The definition: every token through its experts, one after the other, in numpy."""
    scores_BSE = np.asarray(scores(moe, params["router"], x_BSD, loop), np.float64)
    params, x_BSD = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x_BSD))
    experts, out_BSD = params["experts"], np.zeros((B, S, D))

    def silu(a):
        return a / (1 + np.exp(-a))

    for b, s in np.ndindex(B, S):
        x_D, chosen = x_BSD[b, s], choices.experts[b, s]
        total = sum(scores_BSE[b, s, e] for e in chosen) if moe.renormalise else 1.0
        for e, fits in zip(chosen, choices.fits[b, s], strict=True):
            up = x_D @ experts["up"][e]
            hidden = silu(x_D @ experts["gate"][e]) * up if moe.expert == "swiglu" else np.maximum(up, 0)
            out_BSD[b, s] += fits * scores_BSE[b, s, e] / total * (hidden @ experts["down"][e])
        if moe.shared_dim:
            gate, up, down = (params["shared"][name]["kernel"] for name in ("gate", "up", "down"))
            out_BSD[b, s] += (silu(x_D @ gate) * (x_D @ up)) @ down
    return out_BSD


def by_all(moe, params, x_BSD, choices, loop=0):
    """All experts for all tokens, weighted by 0 where they were not chosen: to be differentiated by JAX."""
    experts = params["experts"]
    fits_BSE = jnp.sum(jax.nn.one_hot(choices.experts, moe.num_experts) * choices.fits[..., None], axis=2)
    chosen_BSE = jnp.sum(jax.nn.one_hot(choices.experts, moe.num_experts), axis=2)
    weights_BSE = scores(moe, params["router"], x_BSD, loop)
    if moe.renormalise:
        weights_BSE /= jnp.sum(weights_BSE * chosen_BSE, axis=-1, keepdims=True)
    up = jnp.einsum("BSD,EDF->BSEF", x_BSD, experts["up"])
    gated = moe.expert == "swiglu" and jax.nn.silu(jnp.einsum("BSD,EDF->BSEF", x_BSD, experts["gate"])) * up
    hidden = gated if moe.expert == "swiglu" else jax.nn.relu(up)
    out_BSD = jnp.einsum("BSEF,EFD,BSE->BSD", hidden, experts["down"], weights_BSE * fits_BSE)
    if moe.shared_dim:
        gate, up, down = (params["shared"][name]["kernel"] for name in ("gate", "up", "down"))
        out_BSD += (jax.nn.silu(x_BSD @ gate) * (x_BSD @ up)) @ down
    return out_BSD


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("roomy", "not_renormalised") else ()) for n in CASES]
)
def test_forward_and_all_gradients(name):
    moe, built, loop = CASES[name], build(CASES[name]), 1
    weight_BSD = jax.random.normal(jax.random.key(9), (B, S, D))
    choices = choose(moe, built.params["router"], built.x_BSD, loop)

    def ours(params, x_BSD):
        out_BSD, routing = run(built, params, x_BSD, loop)
        return jnp.sum(out_BSD * weight_BSD), (out_BSD, routing)

    def theirs(params, x_BSD):
        out_BSD = by_all(moe, params, x_BSD, choices, loop)
        return jnp.sum(out_BSD * weight_BSD), out_BSD

    def differentiate(f):
        return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(built.params, built.x_BSD)

    (_, (out, routing)), grads = differentiate(ours)
    (_, expected), expected_grads = differentiate(theirs)
    np.testing.assert_allclose(expected, by_loop(moe, built.params, built.x_BSD, choices, loop), atol=2e-5)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    for (path, grad), wanted in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True
    ):
        np.testing.assert_allclose(grad, wanted, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    np.testing.assert_array_equal(routing.dropped_B, np.sum(~choices.fits, axis=(1, 2)))
    assert bool(np.all(choices.fits)) == (name != "limited")
    loads = [np.bincount(choices.experts[b].reshape(-1), minlength=moe.num_experts) for b in range(B)]
    np.testing.assert_array_equal(routing.load_BE, loads)


def test_sets_of_experts_and_what_they_share_with_the_visit_before():
    moe, built = CASES["sigma"], build(CASES["sigma"])
    layer = jax.jit(lambda x_BSD: run(built, built.params, x_BSD))
    out_BSD, first = layer(built.x_BSD)
    _, second = layer(out_BSD)
    choices = [choose(moe, built.params["router"], x_BSD).experts for x_BSD in (built.x_BSD, out_BSD)]
    bits = [
        [[{e for e in range(moe.num_experts) if int(words[e // 32]) >> (e % 32) & 1} for words in row] for row in sets]
        for sets in (first.experts_BSW, second.experts_BSW)
    ]
    assert bits == [[[set(chosen.tolist()) for chosen in row] for row in chosen_BSk] for chosen_BSk in choices]
    kept = [sum(len(a & b) for a, b in zip(bits[0][b], bits[1][b], strict=True)) for b in range(B)]
    visits_TBLSW = jnp.stack([first.experts_BSW, second.experts_BSW])[:, :, None]
    np.testing.assert_array_equal(kept_choices(visits_TBLSW)[:, :, 0], [[0] * B, kept])


def test_the_router_computes_in_float32_whatever_the_type_of_its_input():
    built = build(CASES["softmax"])
    narrow_BSD = built.x_BSD.astype(jnp.bfloat16)
    _, routing = jax.jit(lambda x_BSD: run(built, built.params, x_BSD))(narrow_BSD)
    logits_BSE = np.asarray(narrow_BSD, np.float64) @ np.asarray(built.params["router"]["kernel"], np.float64)
    expected = (jax.nn.logsumexp(logits_BSE, axis=-1) ** 2).sum(axis=1)
    np.testing.assert_allclose(routing.z_B, expected, rtol=1e-5)  # in bfloat16 it is off by 1e-3
    assert routing.score_BE.dtype == jnp.float32


def test_the_sums_of_a_visit():
    moe, built = CASES["biased"], build(CASES["biased"])
    _, routing = jax.jit(lambda x_BSD: run(built, built.params, x_BSD))(built.x_BSD)
    logits_BSE = built.x_BSD @ built.params["router"]["kernel"] + built.params["router"]["loop_bias"][0]
    np.testing.assert_allclose(routing.score_BE, jax.nn.softmax(logits_BSE).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(routing.z_B, (jax.nn.logsumexp(logits_BSE, axis=-1) ** 2).sum(axis=1), rtol=1e-5)
    assert moe.balance.entropy_weight == 0
    assert routing.softmax_BE is None


def test_scores_that_underflow_do_not_make_nan():
    """Sigmoids of -200 are 0 in float32, and so is their sum."""
    moe = MoE(num_experts=4, experts_per_token=2, expert_dim=4, scores="sigmoid", renormalise=True)
    model = Model(vocab_size=8, dim=4, num_heads=2, hidden_dim=8, block_layers=1, feed_forward=moe)
    router = Router(model.dim, moe, Init.of(model), rngs=nnx.Rngs(0))
    router.kernel.set_value(jnp.full((4, 4), -50.0))

    def total(x_BSD):
        return jnp.sum(router(x_BSD, jnp.zeros(1, jnp.int32))[1])

    weights, gradient = jax.jit(jax.value_and_grad(total))(jnp.ones((1, 3, 4)))
    assert weights == 0
    assert not np.any(gradient)
    assert total(-jnp.ones((1, 3, 4))) == pytest.approx(3)
