"""Every exit rule against its definition, written out in numpy for one token at a time."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.config.schema import ExitGate as GateConfig
from looplm.config.schema import Model
from looplm.infer.exit_rule import parse_exit
from looplm.model.context import Context
from looplm.model.depth import Loop
from looplm.model.gates import ExitGate
from looplm.ops.attention import self_mask

LOOPS, B, S, D, VOCAB = 7, 3, 8, 6, 5
CONFIG = Model(vocab_size=VOCAB, dim=D, num_heads=1, hidden_dim=8, block_layers=1, exit_gate=GateConfig())

draw = np.random.default_rng(0)
GATE_D, HEAD_DV = draw.normal(size=D), 2 * draw.normal(size=(D, VOCAB))
# States come to rest, at a rate of each token's own, so that tokens leave after different loops.
RATE_BS1 = draw.uniform(0.3, 0.9, size=(B, S, 1))
STATES = draw.normal(size=(B, S, D)) + np.stack([RATE_BS1**t * draw.normal(size=(B, S, D)) for t in range(LOOPS + 1)])
"""The first state, and that after every loop: (1 + R, B, S, D)."""


def log_p(h_D):
    logits_V = h_D @ HEAD_DV
    return logits_V - np.log(np.sum(np.exp(logits_V)))


def cumulative(states, t):
    rates = 1 / (1 + np.exp(-states[1 : t + 1] @ GATE_D))
    return 1 - np.prod(1 - rates)


def divergence(states, t):
    new, old = log_p(states[t]), log_p(states[t - 1])
    return np.sum(np.exp(new) * (new - old)) if t > 1 else np.inf


def change(states, t):
    return np.linalg.norm(states[t] - states[t - 1]) / np.linalg.norm(states[t])


def entropy(states, t):
    return -np.sum(np.exp(log_p(states[t])) * log_p(states[t]))


def confidence(states, t):
    return np.exp(np.max(log_p(states[t])))


def stable(states, t, loops):
    return t >= loops and len({np.argmax(log_p(states[u])) for u in range(t - loops + 1, t + 1)}) == 1


def twice(wants):
    return lambda states, t: t > 1 and wants(states, t) and wants(states, t - 1)


# What a token of states (1 + R, D) wants after loop t = 1..R.
WANTS = {
    "gate:0.8": lambda s, t: cumulative(s, t) >= 0.8,
    "kl:0.05": lambda s, t: divergence(s, t) < 0.05,
    "latent:0.4": lambda s, t: change(s, t) < 0.4,
    "entropy:0.6": lambda s, t: entropy(s, t) < 0.6,
    "confidence:0.75": lambda s, t: confidence(s, t) >= 0.75,
    "argmax:3": lambda s, t: stable(s, t, 3),
    "argmax:1,min=3": lambda s, t: t >= 3,
    "latent:0.4,patience=2": twice(lambda s, t: change(s, t) < 0.4),
    "entropy:0.6,patience=2,min=4": lambda s, t: t >= 4 and twice(lambda s, t: entropy(s, t) < 0.6)(s, t),
    "gate:0.8+latent:0.4": lambda s, t: cumulative(s, t) >= 0.8 and change(s, t) < 0.4,
    "gate:0.9|argmax:2+entropy:0.6": lambda s, t: (cumulative(s, t) >= 0.9) | (stable(s, t, 2) & (entropy(s, t) < 0.6)),
}


def by_definition(wants):
    """Return for every token the first loop after which it wants to leave, at the latest the last: (B, S), from 1."""
    exit_BS = np.full((B, S), LOOPS)
    for b, s in np.ndindex(B, S):
        leaving = [t for t in range(1, LOOPS + 1) if wants(STATES[:, b, s], t)]
        exit_BS[b, s] = min([*leaving, LOOPS])
    return exit_BS


def run(rule):
    """Call the rule after every loop. Returns (the loop of every token's exit from 1, what is read of it)."""
    gate = ExitGate(D, GateConfig(), rngs=nnx.Rngs(0))
    gate.kernel.set_value(jnp.asarray(GATE_D[:, None], jnp.float32))
    gate.bias.set_value(jnp.zeros(1))
    halting = parse_exit(rule, CONFIG).build(SimpleNamespace(gate=gate, config=CONFIG))
    zeros_BS = jnp.zeros((B, S), jnp.int32)
    context = Context(zeros_BS, self_mask(CONFIG, zeros_BS), predict=lambda h_BSD: h_BSD @ jnp.float32(HEAD_DV))
    states = jnp.asarray(STATES, jnp.float32)

    @jax.jit
    def after(acc, t, old_BSD, new_BSD):
        loop = Loop(jnp.full(1, t), jnp.full(1, LOOPS))
        return halting.update(acc, old_BSD, new_BSD, new_BSD, replace(context, loop=loop))[1]

    acc = halting.init(states[0])
    for t in range(LOOPS):
        still_in = np.asarray(halting.left(acc))
        acc = after(acc, t, states[t], states[t + 1])
        assert np.all(np.asarray(halting.left(acc)) >= still_in), "who has left stays away"
    assert np.all(halting.left(acc)), "nobody stays in after the last loop"
    return np.asarray(halting.exits(acc)) + 1, np.asarray(halting.finish(acc, states[-1]))


@pytest.mark.parametrize("rule", WANTS)
def test_tokens_leave_and_are_read_where_the_definition_says(rule):
    expected_BS = by_definition(WANTS[rule])
    exit_BS, read_BSD = run(rule)
    np.testing.assert_array_equal(exit_BS, expected_BS)
    at_exit_BSD = np.take_along_axis(STATES, expected_BS[None, :, :, None], axis=0)[0]
    np.testing.assert_allclose(read_BSD, at_exit_BSD, rtol=1e-6)
    assert len(np.unique(expected_BS)) > 2 or "argmax:1" in rule, "tokens leave after different loops"


def test_the_last_loop_is_the_exit_of_all_that_are_left():
    """`latent:1e-9` never lets anybody leave: the last loop does."""
    exit_BS, _ = run("latent:0.000000001")
    np.testing.assert_array_equal(exit_BS, LOOPS)
