"""Adaptive computation time against its definition, token by token, and where it must change nothing.

The official code: test_golden_act.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.config.schema import ACTHalting, Cost, FinalCrossEntropy
from looplm.infer.generate import generate
from looplm.model.act import ACT
from looplm.model.context import Context
from looplm.model.depth import Depth, Loop
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.objective import build_objective, evaluate
from looplm.ops.attention import Mask, self_mask

B, S, D, R = 2, 5, 4, 6


def walked(kind, logits_RBS, states_RBSD, model_config):
    """The rule over given states, whose first channel is the logit of stopping in its loop. Returns (states that go
    on, accumulators, what is read, last loops)."""
    rule = ACT(model_config(dim=D, num_heads=1, num_kv_heads=1, halting=kind), kind, rngs=nnx.Rngs(0))
    rule.unit = lambda h_BSD: h_BSD[..., :1]

    @jax.jit
    def walk():
        acc, state_BSD, passed = rule.init(states_RBSD[0]), jnp.zeros((B, S, D)), []
        for t in range(R):
            loop = Loop(jnp.full(1, t), jnp.full(1, R))
            context = Context(jnp.zeros((B, S), jnp.int32), Mask("full", None, S), loop=loop)
            acc, _ = rule.admit(acc, state_BSD.at[..., 0].set(logits_RBS[t]), context)
            new_BSD = states_RBSD[t].at[..., 0].set(logits_RBS[t])
            state_BSD, acc = rule.update(acc, state_BSD, new_BSD, new_BSD, context)
            passed.append(state_BSD)
        return passed, acc, rule.finish(acc, states_RBSD[0]), rule.exits(acc)

    return jax.device_get(walk())


@pytest.mark.parametrize(
    ("mean", "rest", "freezes", "reads"), [("running", False, False, "before"), ("sum", True, True, "after")]
)
def test_every_token_follows_the_definition(model_config, mean, rest, freezes, reads):
    logits_RBS = 1.5 * jax.random.normal(jax.random.key(0), (R, B, S)) - 1.5
    states_RBSD = jax.random.normal(jax.random.key(1), (R, B, S, D))
    kind = ACTHalting(threshold=0.8, mean=mean, rest_to_last=rest, freezes=freezes, unit_reads=reads)
    passed, acc, read_BSD, exits_BS = walked(kind, logits_RBS, states_RBSD, model_config)
    p_RBS, states_RBSD = 1 / (1 + np.exp(-np.float64(logits_RBS))), np.array(states_RBSD)
    states_RBSD[..., 0] = logits_RBS
    unfinished = 0
    for b, s in np.ndindex(B, S):
        total, out, n, remainder = 0.0, np.zeros(D), 0, 0.0
        for t in range(R):
            n, p = n + 1, p_RBS[t, b, s]
            stops = total + p > 0.8 or (rest and t == R - 1)
            remainder = 1 - total if stops else 0.0
            u = remainder if stops else p
            out = out + u * (states_RBSD[t, b, s] - (out if mean == "running" else 0))
            total += u
            if stops:
                break
        unfinished += not stops
        np.testing.assert_allclose(read_BSD[b, s], out, atol=1e-5)
        np.testing.assert_allclose(acc.remainder_BS[b, s], remainder, atol=1e-6)
        assert acc.updates_BS[b, s] == n
        assert exits_BS[b, s] == n - 1
        np.testing.assert_array_equal(passed[-1][b, s], states_RBSD[n - 1 if freezes else R - 1, b, s])
    assert unfinished > 0 or rest, "a token that the limit leaves unfinished is among them"
    assert len(np.unique(acc.updates_BS)) > 2


@pytest.mark.parametrize("mean", ["running", "sum"])
def test_a_token_that_never_stops_is_read_after_the_last_loop(model_config, random_params, tokens_BS, run_model, mean):
    plain = FunctionalLM(model_config())
    act = FunctionalLM(model_config(halting=ACTHalting(mean=mean)))
    params = random_params(plain)
    unit = {"kernel": jnp.zeros((plain.config.dim, 1)), "bias": jnp.full(1, -200.0)}
    read = run_model(act, params | {"halting": {"unit": unit}}, tokens_BS, Depth(4)).read
    np.testing.assert_array_equal(read, run_model(plain, params, tokens_BS, Depth(4)).read)


@pytest.mark.parametrize(("step", "share"), [(None, 1), (3, 0), (5, 0.25), (9, 1)])
def test_any_objective_adds_the_cost_which_may_begin_later(model_config, random_params, tokens_BS, step, share):
    cost = Cost(weight=0.3, starts_at=4, grows_over=4)
    lm = FunctionalLM(model_config(halting=ACTHalting(initial_bias=-1.0, cost=cost)))
    segments_BS = jnp.zeros_like(tokens_BS).at[1, -4:].set(-1)
    context = Context(
        jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape),
        self_mask(lm.config, segments_BS),
        counted_BS=segments_BS >= 0,
    )
    forward = Forward(
        lm.bind(random_params(lm)),
        tokens_BS,
        context,
        Depth(4),
        jnp.float32,
        step=step if step is None else jnp.int32(step),
    )
    labels_BS = jnp.where(segments_BS >= 0, tokens_BS, -100)
    objective = build_objective(FinalCrossEntropy())
    sums, output = jax.jit(lambda: evaluate(objective, forward, labels_BS, jax.random.key(0)))()
    told = np.array(output.halt.updates_BS + output.halt.remainder_BS)
    added = sum(told[b][labels_BS[b] >= 0].sum() for b in range(2))
    np.testing.assert_allclose(sums.objective - sums.loss, 0.3 * share * added, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.extra["halt/cost"], 0.3 * share * added, rtol=1e-5)


def test_what_is_written_is_the_likeliest_of_whole_passes(model_config, random_params):
    lm = FunctionalLM(model_config(halting=ACTHalting(initial_bias=-1.0)))
    params, prompt = random_params(lm), np.array([3, 1, 7])
    (row,) = generate(
        lm, params, [prompt], num_loops=R, max_tokens=4, temperature=0.0, seed=0, end_ids=[],
        num_ids=lm.config.vocab_size, kv="each",
    )  # fmt: skip
    text = [*prompt, *row.tokens.tolist()]
    tokens_1S = jnp.array([text])
    context = Context(jnp.arange(len(text))[None], self_mask(lm.config, jnp.zeros_like(tokens_1S)))
    model = lm.bind(params)
    output = jax.jit(lambda: Forward(model, tokens_1S, context, Depth(R), jnp.float32)("last"))()
    likeliest_S = jnp.argmax(model.logits(output.read[0])[0], axis=-1)
    np.testing.assert_array_equal(likeliest_S[len(prompt) - 1 : -1], row.tokens)
    assert len(np.unique(output.halt.updates_BS)) > 1, "tokens stop in different loops"
