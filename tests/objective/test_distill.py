"""Distillation against its formulas: token by token, and its gradient against whole logits and JAX's own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.check import check
from looplm.config.schema import Distillation, ElasticCrossEntropy, Model, SelfDistillation, UniformDepth
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.objective import build_objective
from looplm.ops.attention import self_mask

VOCAB, B, S = 23, 2, 9
SIZES = dict(vocab_size=VOCAB, num_heads=2, hidden_dim=24, block_layers=1)
WINDOWS = [Depth(3), Depth(5, jnp.int32(3)), Depth(2, num_detached=1), Depth(3, jnp.array([1, 3]))]
"""All loops; fewer than the window; after detached ones; sequences of one and of three loops."""


@pytest.fixture(scope="module")
def student():
    lm = FunctionalLM(Model(dim=16, coda_layers=1, injection={"kind": "add"}, **SIZES))
    return lm, jax.tree.map(lambda x: 3 * x, lm.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def teacher():
    lm = FunctionalLM(Model(dim=8, head_bias=True, logit_softcap=4.0, **SIZES))
    return lm, jax.tree.map(lambda x: 5 * x, lm.init(jax.random.key(1)))


@pytest.fixture(scope="module")
def data():
    tokens_BS = jax.random.randint(jax.random.key(2), (B, S), 0, VOCAB)
    return tokens_BS, jnp.roll(tokens_BS, -1, axis=1).at[:, -1].set(-100)


def windows(*loops):
    """Every one of them with every choice of loops; one of each in the default suite."""
    quick = [("last", WINDOWS[0]), ("all", WINDOWS[3]), ("earlier", WINDOWS[3])]
    pairs = [(which, depth) for which in loops for depth in WINDOWS]
    return [pytest.param(*pair, marks=[] if pair in quick else pytest.mark.slow) for pair in pairs]


def forward_of(lm, params, tokens_BS, depth, teacher=None, dtype=jnp.float32):
    context = Context(jnp.broadcast_to(jnp.arange(S), (B, S)), self_mask(lm.config, jnp.zeros_like(tokens_BS)))
    return Forward(lm.bind(params), tokens_BS, context, depth, dtype, teacher=teacher)


def log_softmax(logits_V, temperature=1.0):
    scaled_V = np.float64(logits_V) / temperature
    return scaled_V - np.log(np.sum(np.exp(scaled_V - scaled_V.max()))) - scaled_V.max()


def divergence(target_V, logits_V, temperature):
    q_V, p_V = log_softmax(target_V, temperature), log_softmax(logits_V, temperature)
    return temperature**2 * np.sum(np.exp(q_V) * (q_V - p_V))


def loops_that_ran(depth):
    counts = np.broadcast_to(depth.window if depth.num_trained is None else depth.num_trained, B)
    return [range(depth.window - count, depth.window) for count in counts]


@pytest.mark.parametrize(("loops", "depth"), windows("last", "all"))
def test_distillation_follows_its_formula(student, teacher, data, loops, depth):
    config = Distillation(weight=0.3, temperature=1.7, loops=loops)

    @jax.jit
    def run(params, taught):
        guide = forward_of(teacher[0], taught, data[0], Depth(2))
        forward = forward_of(student[0], params, data[0], depth, guide)
        sums, _ = build_objective(config)(forward, data[1], jax.random.key(0))
        target_BSV = guide.model.logits(guide("last").read[0])
        return sums, jax.vmap(forward.model.logits)(forward("all").read), target_BSV

    sums, logits_RBSV, target_BSV = jax.device_get(run(student[1], teacher[1]))
    loss = apart = 0.0
    for b, s in np.ndindex(B, S - 1):
        loss -= log_softmax(logits_RBSV[-1][b, s])[data[1][b, s]]
        compared = loops_that_ran(depth)[b] if loops == "all" else [depth.window - 1]
        apart += np.mean([divergence(target_BSV[b, s], logits_RBSV[t][b, s], 1.7) for t in compared])
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(sums.extra["train/divergence"], apart, rtol=1e-4)
    np.testing.assert_allclose(sums.objective, 0.7 * loss + 0.3 * apart, rtol=1e-4)
    assert sums.tokens == B * (S - 1)


@pytest.mark.parametrize(("loops", "depth"), windows("earlier"))
def test_self_distillation_follows_its_formula(student, data, loops, depth):
    objective = build_objective(SelfDistillation(weight=0.4, temperature=1.3))

    @jax.jit
    def run(params):
        forward = forward_of(student[0], params, data[0], depth)
        sums, _ = objective(forward, data[1], jax.random.key(0))
        return sums, jax.vmap(forward.model.logits)(forward("all").read)

    sums, logits_RBSV = jax.device_get(run(student[1]))
    loss = apart = 0.0
    for b, s in np.ndindex(B, S - 1):
        loss -= log_softmax(logits_RBSV[-1][b, s])[data[1][b, s]]
        earlier = loops_that_ran(depth)[b][:-1]
        if earlier:
            apart += np.mean([divergence(logits_RBSV[-1][b, s], logits_RBSV[t][b, s], 1.3) for t in earlier])
    np.testing.assert_allclose(sums.extra["train/divergence"], apart, rtol=1e-4)
    np.testing.assert_allclose(sums.objective, loss + 0.4 * apart, rtol=1e-4)


@pytest.mark.parametrize("kind", ["distill", "self_distill"])
def test_gradients_are_those_of_whole_logits_and_no_target_has_one(student, teacher, data, kind):
    config = Distillation(loops="all") if kind == "distill" else SelfDistillation(weight=0.7, temperature=1.5)
    lm, params = student
    temperature = config.temperature

    def ours(params, taught):
        guide = forward_of(teacher[0], taught, data[0], Depth(2)) if kind == "distill" else None
        forward = forward_of(lm, params, data[0], Depth(3), guide)
        return build_objective(config)(forward, data[1], jax.random.key(0))[0].objective

    def by_definition(params):
        forward, guide = forward_of(lm, params, data[0], Depth(3)), forward_of(*teacher, data[0], Depth(2))
        logits_RBSV = jnp.stack([forward.model.logits(hidden_BSD) for hidden_BSD in forward("all").read])
        last_BSV = jax.lax.stop_gradient(logits_RBSV[-1])
        target_BSV = guide.model.logits(guide("last").read[0]) if kind == "distill" else last_BSV
        log_q_BSV, log_p_RBSV = (jax.nn.log_softmax(x / temperature) for x in (target_BSV, logits_RBSV))
        kl_RBS = temperature**2 * jnp.sum(jnp.exp(log_q_BSV) * (log_q_BSV - log_p_RBSV), axis=-1)
        log_p_BSV = jax.nn.log_softmax(logits_RBSV[-1])
        nll = -jnp.sum(jnp.take_along_axis(log_p_BSV[:, :-1], data[1][:, :-1, None], -1))
        if kind == "distill":
            return 0.5 * nll + 0.5 * jnp.sum(jnp.mean(kl_RBS, axis=0)[:, :-1])
        return nll + 0.7 * jnp.sum(jnp.mean(kl_RBS[:-1], axis=0)[:, :-1])

    gradient, of_teacher = jax.jit(jax.grad(ours, argnums=(0, 1)))(params, teacher[1])
    expected = jax.jit(jax.grad(by_definition))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, expected)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))


ELASTIC = ElasticCrossEntropy(min_loops=2, steps=8, temperature=1.3)
MORE_DEPTHS_AND_STEPS = [(4, 0, 0), (3, 0, 8), (1, 0, 20)]
DEPTHS_AND_STEPS = [(2, 2, 6), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_DEPTHS_AND_STEPS)]
"""(loops with gradient, those before them, step of the training)."""


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def elastic(student, data):
    """Returns ((objective, what is logged), gradient) at a depth, step and key, which are numbers of one program."""
    lm, traced = student[0], []

    @jax.jit
    def run(params, trained, detached, step, key):
        def loss(params):
            depth = Depth(4, trained, detached)
            forward = replace(forward_of(lm, params, data[0], depth, dtype=jnp.float64), step=step)
            sums, _ = build_objective(ELASTIC)(forward, data[1], key)
            return sums.objective, (sums.loss, sums.extra)

        traced.append(1)
        return jax.value_and_grad(loss, has_aux=True)(params)

    yield run
    assert len(traced) == 1


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("trained", "detached", "step"), DEPTHS_AND_STEPS)
def test_elastic_depth_follows_its_definition(student, data, elastic, trained, detached, step):
    """Loss and all gradients in float64. There the distilled part is a cross-entropy, and every depth a pass."""
    lm, params = student[0], jax.tree.map(np.float64, student[1])
    numbers = (jnp.int64(trained), jnp.int64(detached), jnp.int32(step))
    (found, (loss, extra)), gradient = elastic(params, *numbers, jax.random.key(step))
    total, tokens, w = trained + detached, B * (S - 1), max(0.0, 1 - step / 8)
    loops = round(float(extra["elastic/loops"] / tokens))
    assert min(max(2, detached + 1), total) <= loops <= total

    def by_definition(params):
        def log_p(num_loops, temperature=1.0):
            depth = Depth(num_loops - detached, num_detached=detached)
            forward = forward_of(lm, params, data[0], depth, dtype=jnp.float64)
            return jax.nn.log_softmax(forward.model.logits(forward().read[0]) / temperature)[:, :-1]

        def nll(num_loops):
            return -jnp.sum(jnp.take_along_axis(log_p(num_loops), data[1][:, :-1, None], -1))

        teacher_BSV = jax.lax.stop_gradient(jnp.exp(log_p(total, 1.3)))
        distilled = -(1.3**2) * jnp.sum(teacher_BSV * log_p(loops, 1.3))
        entropy = -(1.3**2) * jnp.sum(teacher_BSV * jnp.log(teacher_BSV))
        return nll(total) + w * nll(loops) + (1 - w) * distilled, (nll(total), (1 - w) * entropy)

    (expected, (last, constant)), of_definition = jax.jit(jax.value_and_grad(by_definition, has_aux=True))(params)
    np.testing.assert_allclose(found, expected - constant, rtol=1e-9)
    np.testing.assert_allclose(loss, last, rtol=1e-9)
    np.testing.assert_allclose(extra["elastic/label_weight"], w * tokens, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), gradient, of_definition)


def test_every_allowed_loop_is_drawn():
    objective, keys = build_objective(ELASTIC), jax.random.split(jax.random.key(0), 200)
    drawn = jax.vmap(lambda key: objective.draw(Depth(4, num_detached=1), key))(keys)
    counts = dict(zip(*np.unique(drawn, return_counts=True), strict=True))
    assert set(counts) == {2, 3, 4, 5}
    assert min(counts.values()) > 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "distill"}, "learns from a teacher; set teacher=FOLDER"),
        ({"objective": "final", "teacher": "runs/x"}, "teacher=runs/x has no part in objective.kind=final"),
        ({"objective": "final", "teacher_loops": 2}, "teacher_loops=2 has no teacher to run"),
        (
            {"objective": "distill", "teacher": "runs/x", "optim.guard.sdc_check": 5},
            "sdc_check=5 computes a gradient without the teacher",
        ),
        ({"objective": "self_distill", "loop.backprop_loops": 1}, "compares earlier loops with the last"),
        ({"objective": "elastic", "loop.backprop_loops": 1}, "elastic draws a loop before the last"),
        ({"objective": "elastic", "objective.min_loops": 3}, "min_loops=3 leaves no loop before the last to draw"),
        ({"objective": "elastic", "objective.steps": 4}, "objective.steps=4 are more than num_steps=3"),
        (
            {"objective": "elastic", "loop.depth": UniformDepth(max_loops=3), "loop.depth_per": "sequence"},
            "elastic draws one loop for all sequences",
        ),
        ({"objective": "elastic", "model.halting": "act", "model.exit_gate": None}, "reads every loop by itself"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_run, changes, message):
    with pytest.raises(UserError, match=message):
        check(tiny_run(**changes))
