"""LoopFormer against a plain definition in float64: values, all gradients, any number of loops, and what is drawn."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.check import check
from looplm.config.load import load_config, override
from looplm.config.schema import LoRA, MoE, SegmentMemory, ShortcutCrossEntropy, UniformDepth
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.trajectory import draw_trajectory
from looplm.objective import build_objective
from looplm.ops.attention import self_mask

VOCAB, B, S, D, N, R = 19, 2, 5, 8, 2, 3
CONFIG = override(
    load_config("loopformer:tiny"),
    {
        "model.vocab_size": VOCAB,
        "model.dim": D,
        "model.num_heads": N,
        "model.hidden_dim": 20,
        "model.positions.length": S,
        "model.conditioning.features": 8,
        "model.conditioning.starts_at_zero": False,
        "data.sequence_length": S,
        "data.batch_tokens": B * S,
    },
)
OBJECTIVE = ShortcutCrossEntropy(short_weight=0.3, consistency_weight=0.7)


@pytest.fixture(scope="module")
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def model(wide):
    lm, random = FunctionalLM(CONFIG.model), np.random.default_rng(0)
    params = lm.map(lambda leaf, _: jnp.asarray(0.4 * random.normal(size=leaf.shape)), lm.shapes)
    tokens_BS = jax.random.randint(jax.random.key(2), (B, S), 0, VOCAB)
    labels_BS = jnp.roll(tokens_BS, -1, axis=1).at[:, -1].set(-100)
    return lm, params, tokens_BS, labels_BS


def forward_of(lm, params, tokens_BS, depth):
    context = Context(jnp.broadcast_to(jnp.arange(S), (B, S)), self_mask(lm.config, jnp.zeros_like(tokens_BS)))
    return Forward(lm.bind(params), tokens_BS, context, depth, jnp.float64)


def rms(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + CONFIG.model.norm_eps)


def embedded(part, number):
    rates = 10_000.0 ** -(np.arange(4) / 4)
    features = np.concatenate([np.cos(number * rates), np.sin(number * rates)])
    inner = features @ part["up"]["kernel"] + part["up_bias"]
    return jax.nn.silu(inner) @ part["down"]["kernel"] + part["down_bias"]


def layer(own, x_BSD, condition_D):
    def modulation(name):
        part = own[name]["modulation"]
        made = jnp.einsum("d,dne->ne", jax.nn.silu(condition_D), part["map"]["kernel"]) + part["bias"]
        return 1 + made[0], made[1]

    scale, gate = modulation("attention_residual")
    h = rms(x_BSD) * scale
    attention = own["attention"]
    kernels = attention["query"]["project"], attention["key"]["project"], attention["value"]
    q, k, v = (jnp.einsum("bsd,dnh->bnsh", h, part["kernel"]) for part in kernels)
    scores = jnp.where(np.tri(S, dtype=bool), q @ jnp.swapaxes(k, -1, -2) / np.sqrt(D // N), -jnp.inf)
    seen = jnp.einsum("bnsh,nhd->bsd", jax.nn.softmax(scores) @ v, attention["output"]["kernel"])
    x_BSD = x_BSD + gate * seen
    scale, gate = modulation("feed_forward_residual")
    inner = (rms(x_BSD) * scale) @ own["feed_forward"]["up"]["kernel"]
    exact_gelu = 0.5 * inner * (1 + jax.scipy.special.erf(inner / np.sqrt(2)))
    return x_BSD + gate * (exact_gelu @ own["feed_forward"]["down"]["kernel"])


def by_definition(params, tokens_BS, steps):
    """Run steps of these sizes. Returns (what the head reads, log probabilities)."""
    core, table = params["core"], params["embedding"]["table"]
    x_BSD, time = table[tokens_BS] + params["position_table"]["table"], 0.0
    for step in steps:
        condition_D = embedded(core["conditioning"]["time"], time) + embedded(core["conditioning"]["step"], step)
        for number in range(CONFIG.model.block_layers):
            x_BSD = layer(jax.tree.map(lambda leaf, i=number: leaf[i], core["block"]["layers"]), x_BSD, condition_D)
        time += step
    hidden_BSD = rms(x_BSD) * params["final_norm"]["scale"]
    return hidden_BSD, jax.nn.log_softmax(hidden_BSD @ table.T)


def nll(log_p_BSV, labels_BS):
    return -jnp.sum(jnp.take_along_axis(log_p_BSV[:, :-1], labels_BS[:, :-1, None], -1))


def test_any_number_of_loops_is_one_trajectory_of_equal_steps(model):
    lm, params, tokens_BS, _ = model

    @jax.jit
    def logits(loops):
        forward = forward_of(lm, params, tokens_BS, Depth(R + 2, num_trained=loops))
        return forward.model.logits(forward().read[0])

    for loops in (1, 3, R, R + 2):
        _, expected = by_definition(params, tokens_BS, [1 / loops] * loops)
        np.testing.assert_allclose(jax.nn.log_softmax(logits(loops)), expected, rtol=1e-9, atol=1e-9)
    assert not lm.one_pass
    assert logits._cache_size() == 1


@pytest.fixture(scope="module")
def shortcut(model):
    """Returns ((objective, sums), gradient) for a key, which is an input of one program."""
    lm, _, tokens_BS, labels_BS = model

    @jax.jit
    def run(params, key):
        def loss(params):
            sums, _ = build_objective(OBJECTIVE)(forward_of(lm, params, tokens_BS, Depth(R)), labels_BS, key)
            return sums.objective, sums

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run


SEEDS = [(0, [2, 1]), pytest.param(1, [1, 2], marks=pytest.mark.slow), pytest.param(3, [3], marks=pytest.mark.slow)]
"""Keys, and the steps of which they make the short trajectory, in units of 1 / R."""


@pytest.mark.parametrize(("seed", "units"), SEEDS)
def test_loss_and_gradients_follow_the_definition(model, shortcut, seed, units):
    _, params, tokens_BS, labels_BS = model
    key = jax.random.key(seed)
    (objective, sums), gradient = shortcut(params, key)
    count, moments = draw_trajectory(R, key, jnp.float64)
    assert np.rint(R * moments.step[:count]).tolist() == units

    def definition(params):
        full_BSD, full_log_p = by_definition(params, tokens_BS, [1 / R] * R)
        short_BSD, short_log_p = by_definition(params, tokens_BS, [unit / R for unit in units])
        square = jnp.mean((jax.lax.stop_gradient(full_BSD) - short_BSD) ** 2, axis=-1)
        parts = nll(full_log_p, labels_BS), nll(short_log_p, labels_BS), jnp.sum(square[:, :-1])
        return parts[0] + 0.3 * parts[1] + 0.7 * parts[2], parts

    (expected, parts), of_definition = jax.jit(jax.value_and_grad(definition, has_aux=True))(params)
    found = sums.loss, sums.extra["shortcut/loss"], sums.extra["shortcut/distance"]
    np.testing.assert_allclose((objective, *found), (expected, *parts), rtol=1e-9)
    assert sums.extra["shortcut/loops"] == len(units) * sums.tokens
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), gradient, of_definition)


def test_what_is_drawn_has_the_published_law():
    """Number of steps uniform; every step but the last uniform among what leaves one unit to each that follows."""
    most, keys = 5, jax.random.split(jax.random.key(0), 8_000)
    counts, moments = jax.jit(jax.vmap(lambda key: draw_trajectory(most, key, jnp.float32)))(keys)
    units = np.rint(np.asarray(moments.step) * most).astype(int)
    found: dict[tuple[int, ...], float] = {}
    for count, row, time in zip(np.asarray(counts), units, np.asarray(moments.time), strict=True):
        taken = tuple(row[:count].tolist())
        np.testing.assert_allclose(time[:count] * most, np.cumsum((0, *taken))[:-1], atol=1e-5)
        found[taken] = found.get(taken, 0) + 1 / len(keys)

    expected: dict[tuple[int, ...], float] = {}

    def draw(taken: tuple[int, ...], left: int, following: int, chance: float) -> None:
        if not following:
            expected[*taken, left] = chance
            return
        for unit in range(1, left - following + 1):
            draw((*taken, unit), left - unit, following - 1, chance / (left - following))

    for count in range(1, most):
        draw((), most, count - 1, 1 / (most - 1))
    assert found.keys() == expected.keys()
    for taken, chance in expected.items():
        assert abs(found[taken] - chance) < 5 * np.sqrt(chance / len(keys)), taken


def test_at_first_a_loop_changes_nothing():
    lm = FunctionalLM(override(CONFIG, {"model.conditioning.starts_at_zero": True}).model)
    params, tokens_BS = lm.init(jax.random.key(0)), jnp.arange(B * S).reshape(B, S)
    forward = replace(forward_of(lm, params, tokens_BS, Depth(2)), dtype=jnp.float32)
    entered, _ = forward.model.enter(tokens_BS, forward.context, jnp.float32)
    np.testing.assert_array_equal(forward().state, entered.entered_BSD)


def test_adapters_are_of_tokens_and_leave_the_trajectory_alone():
    adapted = FunctionalLM(override(CONFIG, {"model.adapter": LoRA(targets=("core",), rank=2)}).model)
    beside = {path[-3] for path in adapted.declarations if "adapter" in path}
    assert beside == {"project", "value", "output", "up", "down"}
    assert not any("adapter" in path and {"modulation", "conditioning"} & set(path) for path in adapted.declarations)
    with pytest.raises(UserError, match="'modulation' means no part of this model"):
        FunctionalLM(override(CONFIG, {"model.adapter": LoRA(targets=("modulation",))}).model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.conditioning": "none"}, "set model.conditioning=trajectory"),
        ({"objective.short_weight": 0, "objective.consistency_weight": 0}, "nothing is learned from the short"),
        ({"loop.num_loops": 1}, "draws fewer loops than loop.num_loops"),
        (
            {"loop.depth": UniformDepth(max_loops=4)},
            "the full trajectory has one number of loops; use loop.depth=fixed",
        ),
        ({"loop.backprop_loops": 2}, "gradients flow through all of both trajectories"),
        ({"model.halting": "act"}, "every token runs both to the end"),
        ({"model.feed_forward": MoE(num_experts=2, experts_per_token=1)}, "what routers choose on the short"),
        ({"model.norm": "layer"}, "takes the place of the scale of an RMSNorm"),
        ({"model.norm_loops": 2}, "scales follow from its time and step"),
        ({"model.memory": SegmentMemory(length=4)}, "what was before the sequence has a time of its own"),
        ({"model.core": {"kind": "two_speed", "inner_loops": 2}}, "a loop is one step of one state"),
        ({"mesh.context": 2}, "model.conditioning=trajectory needs whole sequences"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(override(CONFIG, changes))
