"""What routers add to the objective: against formulas in numpy, and against the official entropy of MoEUT."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Balance, ExitGate, FinalCrossEntropy, GateImprovement, MixtureAttention, Model, MoE
from looplm.metrics.step import NO_ROUTERS
from looplm.model.cache import NO_CACHE
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.output import Output
from looplm.model.report import Report, Reporting
from looplm.model.routing import summed, unless_padding
from looplm.objective import build_objective, evaluate
from looplm.objective.router import loads_by_row, router_loss, router_sums
from looplm.ops.attention import self_mask
from looplm.ops.cross_entropy import IGNORED

R, B, L, S, E, K = 3, 2, 2, 5, 6, 2
GOLDEN = Path(__file__).parents[1] / "golden" / "moeut_a"
RAN = np.array([[False, True], [True, True], [True, True]])
"""(R, B): the second sequence runs all loops."""
SCORED_B = np.array([3, 5])


def model(balance, **fields):
    moe = MoE(num_experts=E, experts_per_token=K, balance=balance, **fields)
    return Model(vocab_size=8, dim=8, num_heads=2, hidden_dim=8, block_layers=L, feed_forward=moe)


@partial(jax.jit, static_argnums=0)
def loss_of(config, logits_RBLSE, ran_RB=RAN, counted_BS=None):
    return router_loss(config, output(config, logits_RBLSE, ran_RB, counted_BS), SCORED_B)


@partial(jax.jit, static_argnums=0)
def counts_of(config, logits_RBLSE):
    """What is logged, and the loads by row of the tables."""
    out = output(config, logits_RBLSE)
    return router_sums(out), loads_by_row(config, out)


def output(config, logits_RBLSE, ran_RB=RAN, counted_BS=None):
    """As the driver gives it, from the router's logits alone."""
    moe = config.feed_forward
    k = moe.experts_per_token

    def visit(logits_BSE):
        scores_BSE = jax.nn.softmax(logits_BSE) if moe.scores == "softmax" else jax.nn.sigmoid(logits_BSE)
        ids_BSk = unless_padding(jax.lax.top_k(scores_BSE, k)[1], counted_BS, moe.num_experts)
        return summed(
            logits_BSE, scores_BSE, ids_BSk, jnp.zeros(len(ids_BSk), jnp.int32),
            with_softmax=moe.balance.entropy_weight > 0, with_logits=False,
        )  # fmt: skip

    routing = jax.vmap(jax.vmap(visit, in_axes=1, out_axes=1))(jnp.asarray(logits_RBLSE))
    depth = Depth(len(logits_RBLSE))
    if ran_RB is not None:
        trained_B = jnp.asarray(ran_RB.sum(axis=0))
        depth = Depth(len(ran_RB), trained_B, len(ran_RB) - trained_B)
    return Output(None, None, None, None, None, depth, None, {"block": Report(experts=routing)}, None, NO_CACHE)


@pytest.fixture(scope="module")
def logits_RBLSE():
    return np.random.default_rng(0).normal(size=(R, B, L, S, E)).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def shares(logits):
    """f and P of tokens (..., S, E)."""
    probabilities = softmax(logits)
    chosen = np.argsort(-probabilities, axis=-1)[..., :K]
    return np.eye(E)[chosen].sum(axis=(-3, -2)) / logits.shape[-2], probabilities.mean(axis=-2)


def test_the_balance_loss_of_every_sequence(logits_RBLSE):
    config = model(Balance(auxiliary_weight=0.1))
    expected = 0.0
    for b in range(B):
        visits = [E * np.dot(*shares(logits_RBLSE[r, b, i])) for r in range(R) if RAN[r, b] for i in range(L)]
        expected += 0.1 * np.mean(visits) * SCORED_B[b]
    assert loss_of(config, logits_RBLSE) == pytest.approx(expected, rel=1e-5)


def test_the_balance_loss_over_a_batch_and_over_the_model(logits_RBLSE):
    batch, pooled = (model(Balance(auxiliary_weight=0.1, auxiliary_over=over)) for over in ("batch", "model"))
    visits = []
    for r in range(R):
        for i in range(L):
            f, P = (np.mean([shares(logits_RBLSE[r, b, i])[x] for b in range(B) if RAN[r, b]], axis=0) for x in (0, 1))
            visits.append(E * np.dot(f, P))
    found = loss_of(batch, logits_RBLSE)
    assert found == pytest.approx(0.1 * np.mean(visits) * SCORED_B.sum(), rel=1e-5)
    every = [shares(logits_RBLSE[r, b, i]) for r in range(R) for b in range(B) if RAN[r, b] for i in range(L)]
    f, P = (np.mean([one[x] for one in every], axis=0) for x in (0, 1))
    found = loss_of(pooled, logits_RBLSE)
    assert found == pytest.approx(0.1 * E * np.dot(f, P) * SCORED_B.sum(), rel=1e-5)


@pytest.mark.parametrize("over", ["sequence", "batch", "model"])
def test_padding_is_no_token(logits_RBLSE, over):
    """Sequences of 3 and of 4 tokens of 5 places; over a batch or the model every token counts alike."""
    config = model(Balance(auxiliary_weight=0.1, auxiliary_over=over))
    counted_BS = np.array([[True, False, True, True, False], [False, True, True, True, True]])

    def tokens(r, i, rows):
        return np.concatenate([logits_RBLSE[r, b, i, counted_BS[b]] for b in rows if RAN[r, b]])

    loops = {b: [r for r in range(R) if RAN[r, b]] for b in range(B)}
    if over == "sequence":
        visits = [[E * np.dot(*shares(tokens(r, i, [b]))) for r in loops[b] for i in range(L)] for b in range(B)]
        expected = sum(np.mean(visits[b]) * SCORED_B[b] for b in range(B))
    elif over == "batch":
        expected = (
            np.mean([E * np.dot(*shares(tokens(r, i, range(B)))) for r in range(R) for i in range(L)]) * SCORED_B.sum()
        )
    else:
        every = [tokens(r, i, range(B)) for r in range(R) for i in range(L)]
        expected = E * np.dot(*shares(np.concatenate(every))) * SCORED_B.sum()
    found = loss_of(config, logits_RBLSE, counted_BS=counted_BS)
    assert found == pytest.approx(0.1 * expected, rel=1e-5)


def test_the_z_loss(logits_RBLSE):
    config = model(Balance(z_loss_weight=0.1))
    z_RBLS = np.log(np.exp(logits_RBLSE.astype(np.float64)).sum(axis=-1)) ** 2
    expected = sum(0.1 * z_RBLS[RAN[:, b], b].mean() * SCORED_B[b] for b in range(B))
    assert loss_of(config, logits_RBLSE) == pytest.approx(expected, rel=1e-5)


def test_the_official_entropy_of_moeut_over_all_repeats():
    """reg_loss = 0.01 * (FFN) + 0.001 * (attention); the attention's part is taken here, in numpy."""
    io, sizes = dict(np.load(GOLDEN / "io.npz")), json.loads((GOLDEN / "config.json").read_text())
    group = sizes["group_size"]

    def logit(s):
        return np.log(s) - np.log1p(-s)

    n, batch, length, experts = io["ff_scores"].shape
    moe = MoE(
        num_experts=experts, experts_per_token=sizes["ff_k"], scores="sigmoid", renormalise=False, expert="relu",
        balance=Balance(entropy_weight=0.01),
    )  # fmt: skip
    config = model(Balance()).model_copy(update={"feed_forward": moe, "block_layers": group})
    # Executions in order: layer 0, layer 1, layer 0, ...
    logits_RBLSE = np.moveaxis(logit(io["ff_scores"]).reshape(n // group, group, batch, length, experts), 1, 2)
    found = router_loss(config, output(config, logits_RBLSE, None), np.ones(batch)) / batch

    attention = 0.0
    for name in ("att_v_scores", "att_o_scores"):
        scores = io[name].reshape(n // group, group, batch, length, *io[name].shape[3:])
        mean = softmax(logit(scores.astype(np.float64))).mean(axis=(0, 3))  # (group, B, heads, experts)
        attention += (mean * np.log(mean)).sum(axis=-1).mean(axis=(1, 2)).sum()
    assert found + 0.001 * attention == pytest.approx(io["reg_loss"].item(), rel=1e-5)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 1), (4, 2)])
def test_the_entropy_of_the_experts_of_heads_is_a_mean_over_the_heads_of_each_projection(num_heads, num_kv_heads):
    mixture = MixtureAttention(num_experts=E, experts_per_token=K, entropy_weight=0.1)
    config = Model(
        vocab_size=8, dim=8, num_heads=num_heads, num_kv_heads=num_kv_heads, hidden_dim=8, block_layers=L,
        attention=mixture,
    )  # fmt: skip
    num_groups = num_kv_heads + num_heads
    logits_RBLSGE = np.random.default_rng(0).normal(size=(R, B, L, S, num_groups, E)).astype(np.float32)

    def visit(logits_BSGE):
        ids_BSGk = jax.lax.top_k(logits_BSGE, K)[1] + E * jnp.arange(num_groups)[:, None]
        logits_BSE, ids_BSk = (x.reshape(*x.shape[:2], -1) for x in (logits_BSGE, ids_BSGk))
        return summed(
            logits_BSE, jax.nn.sigmoid(logits_BSE), ids_BSk, jnp.zeros(B, jnp.int32),
            num_groups=num_groups, with_softmax=True, with_logits=False,
        )  # fmt: skip

    heads = jax.jit(jax.vmap(jax.vmap(visit, in_axes=1, out_axes=1)))(logits_RBLSGE)
    trained_B = jnp.asarray(RAN.sum(axis=0))
    depth = Depth(R, trained_B, R - trained_B)
    out = Output(None, None, None, None, None, depth, None, {"block": Report(heads=heads)}, None, NO_CACHE)
    found = router_loss(config, out, SCORED_B)

    expected = 0.0
    for b in range(B):
        mean_LGE = softmax(np.float64(logits_RBLSGE[RAN[:, b], b])).mean(axis=(0, 2))
        entropy_LG = -(mean_LGE * np.log(mean_LGE)).sum(axis=-1)
        values_L, outputs_L = entropy_LG[:, :num_kv_heads].mean(axis=1), entropy_LG[:, num_kv_heads:].mean(axis=1)
        expected -= 0.1 * (values_L + outputs_L).sum() * SCORED_B[b]
    assert found == pytest.approx(expected, rel=1e-5)


def test_loads_by_loop_and_by_row_of_the_tables(logits_RBLSE):
    config = model(Balance(bias_rate=0.1), loop_biases=2)
    logged, by_row = counts_of(config, logits_RBLSE)
    chosen = np.eye(E, dtype=int)[np.argsort(-logits_RBLSE, axis=-1)[..., :K]].sum(axis=(3, 4)) * RAN[:, :, None, None]
    np.testing.assert_array_equal(logged.moe["block"].load_TLE, chosen.sum(axis=1))
    rows = np.stack([chosen[0].sum(axis=0), chosen[1:].sum(axis=(0, 1))], axis=1)
    np.testing.assert_array_equal(by_row["block"], rows)


def test_choices_of_the_loop_before_are_counted_where_a_loop_ran(logits_RBLSE):
    config = model(Balance())
    chosen = np.argsort(-logits_RBLSE, axis=-1)[..., :K]
    both = (chosen[1:, ..., :, None] == chosen[:-1, ..., None, :]).sum(axis=(2, 3, 4, 5)) * RAN[1:]
    found = counts_of(config, logits_RBLSE)[0].moe["block"].kept_T
    np.testing.assert_array_equal(found, [0, *both.sum(axis=1)])
    assert found.dtype == jnp.int32, "counts are subtracted from each other"
    assert both.any()


def test_an_expert_that_no_token_would_take_leaves_the_entropy_finite(logits_RBLSE):
    config = model(Balance(entropy_weight=0.1))
    far_RBLSE = logits_RBLSE - np.array([0, 0, 0, 0, 0, 300], np.float32)
    loss, gradient = jax.value_and_grad(lambda x: loss_of(config, x))(far_RBLSE)
    rest = model(Balance(entropy_weight=0.1)).model_copy(
        update={"feed_forward": config.feed_forward.model_copy(update={"num_experts": E - 1})}
    )
    expected = loss_of(rest, logits_RBLSE[..., :-1])
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("over", ["sequence", "batch", "model"])
def test_without_a_visit_routers_add_nothing(over, logits_RBLSE):
    config = model(Balance(auxiliary_weight=0.1, auxiliary_over=over, entropy_weight=0.1, z_loss_weight=0.1))
    assert loss_of(config, logits_RBLSE, np.zeros_like(RAN)) == 0


def test_a_stack_that_was_not_asked_for_its_choices_adds_nothing():
    config = model(Balance(auxiliary_weight=0.1, entropy_weight=0.1, z_loss_weight=0.1))
    report = Report(memory_BSD=jnp.zeros((R, B, L, S, config.dim)))
    silent = Output(None, None, None, None, None, Depth(R), None, {"block": report}, None, NO_CACHE)
    assert router_loss(config, silent, SCORED_B) == 0
    assert router_sums(silent) == NO_ROUTERS


@pytest.mark.parametrize("kind", [FinalCrossEntropy(), GateImprovement()], ids=lambda kind: kind.kind)
def test_a_model_that_learns_also_gets_the_losses_of_its_routers(kind):
    """The z-loss, from the logits of all routers; where the gate alone learns, choices are only counted."""
    moe = MoE(num_experts=E, experts_per_token=K, expert_dim=4, balance=Balance(z_loss_weight=0.5))
    lm = FunctionalLM(
        Model(
            vocab_size=8, dim=8, num_heads=2, num_kv_heads=1, hidden_dim=8, block_layers=L, exit_gate=ExitGate(),
            feed_forward=moe, attention=MixtureAttention(num_experts=E, experts_per_token=K),
        )
    )  # fmt: skip
    objective, tokens_BS = build_objective(kind), jax.random.randint(jax.random.key(1), (B, S), 0, 8)
    labels_BS = jnp.where(jnp.arange(S) < SCORED_B[:, None], tokens_BS, IGNORED)
    context = Context(
        jnp.broadcast_to(jnp.arange(S), (B, S)), self_mask(lm.config, jnp.zeros((B, S), jnp.int32)),
        reporting=Reporting(routing=True, router_logits=True),
    )  # fmt: skip

    @jax.jit
    def both(params):
        forward = Forward(lm.bind(params), tokens_BS, context, Depth(R), jnp.float32)
        alone, _ = objective(forward, labels_BS, jax.random.key(2))
        sums, output = evaluate(objective, forward, labels_BS, jax.random.key(2))
        return alone.objective, sums, output.reports["block"].experts.logits_BSE

    alone, sums, logits_RBLSE = both(lm.init(jax.random.key(0)))
    z_B = (np.log(np.exp(np.float64(logits_RBLSE)).sum(axis=-1)) ** 2).mean(axis=(0, 2, 3))
    added = 0.5 * z_B @ SCORED_B if objective.trains is None else 0.0
    assert sums.objective - alone == pytest.approx(added, abs=1e-4)
    visits = R * B * L * S * K
    assert (sums.routers.moe["block"].load_TLE.sum(), sums.routers.attention["block"].load_TLE.sum()) == (
        visits,
        3 * visits,
    )


def test_the_coda_counts_only_reads_of_loops_that_ran():
    """A window of 3 of which the last 2 loops run, in a coda with experts: reading the first changes nothing."""
    balance = Balance(auxiliary_weight=0.1, entropy_weight=0.1, z_loss_weight=0.1)
    moe = MoE(num_experts=E, experts_per_token=K, expert_dim=4, balance=balance)
    lm = FunctionalLM(
        Model(vocab_size=8, dim=8, num_heads=2, hidden_dim=8, block_layers=1, coda_layers=L, coda_feed_forward=moe)
    )
    params, tokens_BS = lm.init(jax.random.key(0)), jax.random.randint(jax.random.key(1), (B, S), 0, 8)
    segments_BS = jnp.zeros((B, S), jnp.int32)
    positions_BS = jnp.broadcast_to(jnp.arange(S), (B, S))
    context = Context(positions_BS, self_mask(lm.config, segments_BS), reporting=Reporting(routing=True))

    @jax.jit
    def found(read):
        out = Forward(lm.bind(params), tokens_BS, context, Depth(R, jnp.int32(2)), jnp.float32)(read)
        loads = router_sums(out).moe["coda"].load_TLE, loads_by_row(lm.config, out)["coda"]
        return router_loss(lm.config, out, SCORED_B), *loads

    (loss, load_TLE, load_LWE), (expected, _, fewer_LWE) = found(jnp.arange(R)), found(jnp.array([1, 2]))
    assert loss == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_array_equal(load_TLE.sum(axis=-1), [[0] * L, *[[B * S * K] * L] * 2])
    np.testing.assert_array_equal(load_LWE, fewer_LWE)
