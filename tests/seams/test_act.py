"""Adaptive computation time (arXiv 1603.08983, as in 1807.03819) as a halting rule, on official probabilities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.halting import Never
from looplm.model.loop import run_loops
from looplm.ops.attention import Mask
from tests.seams.conftest import fixture


class Halted(NamedTuple):
    total_BS: jax.Array
    remainder_BS: jax.Array
    updates_BS: jax.Array
    weight_BS: jax.Array
    mean_BSD: jax.Array


class Act(Never):
    """A token's output is the mean of its states, weighted by the probability that it stopped there."""

    def __init__(self, unit, threshold):
        self.unit, self.threshold = unit, threshold

    def init(self, h_BSD):
        zeros_BS = jnp.zeros(h_BSD.shape[:2])
        return Halted(zeros_BS, zeros_BS, zeros_BS, zeros_BS, jnp.zeros_like(h_BSD))

    def admit(self, acc, h_BSD, context):
        p_BS, running_BS = self.unit(h_BSD), acc.total_BS < 1
        stops_BS = running_BS & (acc.total_BS + p_BS > self.threshold)
        weight_BS = jnp.where(stops_BS, 1 - acc.total_BS, jnp.where(running_BS, p_BS, 0))
        return acc._replace(
            total_BS=jnp.where(stops_BS, 1.0, acc.total_BS + weight_BS),
            remainder_BS=acc.remainder_BS + jnp.where(stops_BS, weight_BS, 0),
            updates_BS=acc.updates_BS + running_BS,
            weight_BS=weight_BS,
        ), None

    def update(self, acc, old, new, h_BSD, context):
        weight_BS1 = acc.weight_BS[..., None]
        return new, acc._replace(mean_BSD=h_BSD * weight_BS1 + acc.mean_BSD * (1 - weight_BS1))

    def finish(self, acc, h_BSD):
        return acc.mean_BSD

    def left(self, acc):
        return acc.total_BS >= 1


def test_the_rule_gives_the_official_sums():
    io = fixture("ut_act_a").io
    p_TBS, layer_TBSD = jnp.asarray(io["p"]), jnp.asarray(io["layer_output"])
    T, B, S, D = layer_TBSD.shape
    context = Context(jnp.zeros((B, S), jnp.int32), Mask("full", None, S))
    rule = Act(lambda h_BSD: h_BSD[..., 0], 0.9)

    def step(parameters, carry, inputs, loop):
        state_BSD, acc = carry
        t = loop.number_B[0]
        acc, _ = rule.admit(acc, p_TBS[t][..., None], context)
        return rule.update(acc, state_BSD, layer_TBSD[t], layer_TBSD[t], context), None

    first = jnp.zeros((B, S, D)), rule.init(jnp.zeros((B, S, D)))
    ran = run_loops(step, None, first, None, Depth(T), keep=lambda carry: (carry[1].total_BS, carry[1].weight_BS))
    acc, (totals, weights) = ran.carry[1], ran.kept
    np.testing.assert_allclose(rule.finish(acc, None), io["output"], atol=1e-5)
    np.testing.assert_allclose(acc.remainder_BS, io["remainders"].reshape(B, S), atol=1e-6)
    np.testing.assert_array_equal(acc.updates_BS, io["n_updates"].reshape(B, S))
    np.testing.assert_allclose(totals, io["halting_probability"].reshape(totals.shape), atol=1e-6)
    np.testing.assert_allclose(weights, io["update_weights"].reshape(weights.shape), atol=1e-6)
    np.testing.assert_allclose(jnp.mean(acc.updates_BS + acc.remainder_BS), io["ponder_cost"], rtol=1e-6)


def test_where_nobody_stops_before_the_last_loop_its_state_is_read():
    B, S, D, T = 2, 3, 4, 5
    state_TBSD = jax.random.normal(jax.random.key(0), (T, B, S, D))
    rule, context = Act(lambda h_BSD: h_BSD[..., 0], 0.9), Context(jnp.zeros((B, S), jnp.int32), Mask("full", None, S))
    acc = rule.init(state_TBSD[0])
    for t in range(T):
        acc, _ = rule.admit(acc, jnp.full((B, S, 1), float(t == T - 1)), context)
        _, acc = rule.update(acc, None, state_TBSD[t], state_TBSD[t], context)
    np.testing.assert_array_equal(rule.finish(acc, None), state_TBSD[-1])
