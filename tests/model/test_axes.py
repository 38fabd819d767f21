"""Every value of every axis works with every value of every other: as the plain implementation computes it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.report import Reporting
from looplm.objective import build_objective, evaluate
from looplm.ops.attention import self_mask
from looplm.ops.cross_entropy import IGNORED
from tests.model import plain

MOE = schema.MoE(
    num_experts=5, experts_per_token=2, expert_dim=8, loop_biases=2,
    balance=schema.Balance(bias_rate=0.01, auxiliary_weight=0.01, z_loss_weight=0.001),
)  # fmt: skip
B, S, R, VOCAB = 4, 8, 3, 31
STATE_KEY = jax.random.key(2)
AXES = {
    "injection": [
        schema.NoInjection(), schema.AddInjection(), schema.ConcatInjection(),
        schema.ConcatInjection(init="input", bias=True), schema.DiagonalInjection(),
        schema.GateInjection(initial_keep=0.3),
    ],
    "state_init": [
        schema.InputState(), schema.EmbeddingState(), schema.ZeroState(), schema.NormalState(), schema.VectorState(),
    ],
    "core": [schema.SingleCore(), schema.SingleCore(damping=0.7)],
    "norm_placement": ["pre", "sandwich", "sandwich_sum", "peri", "post", "output"],
    "norm": ["rms", "layer", "unit"],
    "norm_at_loop_end": [False, True],
    "norm_before_coda": [False, True],
    "prelude_norm": [False, True],
    "attention": [
        schema.DenseAttention(), schema.DenseAttention(output_gate=True),
        schema.MixtureAttention(num_experts=3, experts_per_token=2, entropy_weight=0.01),
    ],
    "qk_norm": [False, True],
    "qk_norm_scale": [True, False],
    "qk_norm_over": ["head", "all_heads"],
    "value_embedding": [
        None, schema.ValueEmbedding(gate_channels=8), schema.ValueEmbedding(every=1, gate_channels=16),
        schema.ValueEmbedding(every=3, gate_channels=8),
    ],
    "read_out": [None, schema.ReadOut(), schema.ReadOut(init="identity")],
    "qk_bias": [False, True],
    "rope": [
        schema.Rope(), schema.Rope(layout="interleaved", fraction=0.5),
        schema.Rope(scaling=schema.LinearScaling(factor=2.0)),
        schema.Rope(scaling=schema.RampScaling(factor=8.0, original_length=64)),
        schema.Rope(scaling=schema.YarnScaling(factor=8.0, original_length=64, fast_turns=4.0)),
    ],
    "positions": [
        schema.RotaryPositions(), schema.RelativePositions(), schema.LearnedPositions(length=S, scale=0.5),
        schema.NoPositions(),
    ],
    "conditioning": [schema.NoConditioning(), schema.VectorConditioning(loops=2)],
    "residual_step": ["one", "inverse_loops"],
    "feed_forward": [schema.SwiGLU(), schema.GELU(), schema.SquaredReLU(scale=0.5), schema.ConvSwiGLU(kernel=3), MOE],
    "tie_embeddings": [False, True],
    "head_bias": [False, True],
    "embedding_scale": [1.0, 4.0],
    "logit_softcap": [None, 15.0],
    "attention_mask": ["causal", "prefix", "full"],
    "attention_window": [None, 3],
    "init": [schema.NormalInit(), schema.DepthScaledInit(effective_depth=8), schema.NormalInit(std=0.1)],
    "objective": [
        schema.FinalCrossEntropy(z_loss_weight=1e-3), schema.ExpectedCrossEntropy(),
        schema.ExpectedCrossEntropy(sampled_heads=2), schema.WeightedCrossEntropy(weights="linear"),
    ],
    "remat": ["none", "layer", "loop", "names", "offload"],
    "depth": ["fixed", "batch", "sequence"],
}  # fmt: skip
SEED = 47
"""Of many, one that gives few cases."""


def pairwise_cases(seed: int) -> list[dict[str, int]]:
    """Few choices of one value per axis in which every pair of values of two axes occurs: greedy, seeded."""
    generator = np.random.default_rng(seed)
    values = [(name, i) for name, choices in AXES.items() for i in range(len(choices))]
    place = {value: i for i, value in enumerate(values)}
    missing = np.array([[a != b for b, _ in values] for a, _ in values])
    cases = []
    while missing.any():
        first = values[np.argmax(missing.sum(axis=1))]
        chosen = [place[first]]
        for name in generator.permutation([name for name in AXES if name != first[0]]):
            own = [place[name, i] for i in range(len(AXES[name]))]
            chosen.append(own[int(np.argmax(missing[np.ix_(own, chosen)].sum(axis=1)))])
        missing[np.ix_(chosen, chosen)] = False
        cases.append(dict(values[i] for i in chosen))
    return cases


def telling(cases: list[dict[str, int]], count: int) -> list[int]:
    """So many of the cases: the next one adds most values that those before did not have, then most pairs."""
    held: set[tuple] = set()
    chosen: list[int] = []

    def new(i: int) -> tuple[int, int]:
        values = sorted(cases[i].items())
        return len({*values} - held), len({*itertools.combinations(values, 2)} - held)

    for _ in range(count):
        chosen.append(max(set(range(len(cases))) - {*chosen}, key=new))
        values = sorted(cases[chosen[-1]].items())
        held |= {*values, *itertools.combinations(values, 2)}
    return chosen


CASES = pairwise_cases(seed=SEED)
QUICK = telling(CASES, 12)
"""The others are slow tests: these hold every value, and most pairs."""


def test_the_cases_hold_every_pair_of_values() -> None:
    for a, b in itertools.combinations(AXES, 2):
        assert {(case[a], case[b]) for case in CASES} == set(
            itertools.product(range(len(AXES[a])), range(len(AXES[b])))
        )
    for name, values in AXES.items():
        assert {CASES[i][name] for i in QUICK} == set(range(len(values)))


@pytest.fixture(
    params=[pytest.param(case, id=str(i), marks=[] if i in QUICK else pytest.mark.slow) for i, case in enumerate(CASES)]
)
def case(request, random_params):
    """A model of a case with random parameters, its loss as a function of them, and what the loss is made of."""
    chosen = {name: AXES[name][value] for name, value in request.param.items()}
    objective = build_objective(chosen.pop("objective"))
    remat, varies = chosen.pop("remat"), chosen.pop("depth")
    if isinstance(chosen["conditioning"], schema.VectorConditioning) and varies == "sequence":
        varies = "batch"  # config.check refuses the pair
    # A state that stays zero has a gradient that every norm multiplies with 1 / sqrt(eps): at 1e-6 it overflows.
    lm = FunctionalLM(
        Model(
            vocab_size=VOCAB, dim=16, num_heads=2, hidden_dim=24, prelude_layers=1, block_layers=2, coda_layers=3,
            exit_gate=schema.ExitGate(), norm_eps=0.1, **chosen,
        )
    )  # fmt: skip
    tokens_BS = np.random.default_rng(0).integers(0, VOCAB, (B, S))
    labels_BS = np.roll(tokens_BS, -1, axis=1)
    labels_BS[:, -1] = IGNORED
    trained = {"fixed": None, "batch": jnp.int32(2), "sequence": jnp.array([1, 3, 2, 3])}[varies]
    detached = {"fixed": 0, "batch": jnp.int32(0), "sequence": jnp.array([0, 2, 0, 1])}[varies]
    depth = Depth(R, trained, detached)

    def loss(params):
        context = Context(
            jnp.broadcast_to(jnp.arange(S), (B, S)), self_mask(lm.config, jnp.zeros((B, S), jnp.int32)), remat,
            key=STATE_KEY, sequence_B=jnp.arange(B), reporting=Reporting(routing=True),
        )  # fmt: skip
        forward = Forward(lm.bind(params), jnp.asarray(tokens_BS), context, depth, jnp.float32, with_statistics=True)
        sums, _ = evaluate(objective, forward, jnp.asarray(labels_BS), jax.random.key(1))
        return sums.objective, sums

    return lm.config, random_params(lm), tokens_BS, depth, objective, loss


def test_every_pair_of_values_gives_its_numbers(case) -> None:
    config, params, tokens_BS, depth, objective, loss = case
    value, sums = jax.jit(loss)(params)
    assert np.isfinite(value)
    assert_equal_to_plain(sums, objective, config, params, tokens_BS, depth)


@pytest.mark.slow
def test_every_pair_of_values_learns(case) -> None:
    config, params, *_, objective, loss = case
    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(loss, has_aux=True))(params)[0]):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        # A key's bias shifts all scores of a query alike unless it is rotated; the first token's rotation is none.
        if learns(name, config, objective):
            assert np.any(leaf), name


def assert_equal_to_plain(sums, objective, config, params, tokens_BS, depth) -> None:
    """Loop by loop from the last one, as far as all sequences run it; which heads were drawn is found out."""
    ran_B, trained_B = (np.broadcast_to(x, B) for x in (depth.num_loops, depth.num_loops - depth.num_detached))
    exact, nll_BR, exit_R = jax.tree.map(np.float64, params), [], np.zeros(R)
    for b, tokens_S in enumerate(tokens_BS):
        drawn_SD = drawn_state(config, b) if isinstance(config.state_init, schema.NormalState) else None
        logits_tSV, gates_tS = plain.forward(config, exact, tokens_S, ran_B[b], drawn_SD)
        logits_tSV, gates_tS = logits_tSV[-trained_B[b] :, :-1], gates_tS[-trained_B[b] :, :-1]
        nll_tS = np.log(np.exp(logits_tSV).sum(axis=-1)) - logits_tSV[:, range(S - 1), tokens_S[1:]]
        nll_BR.append(np.pad(nll_tS.sum(axis=1), (R - trained_B[b], 0), constant_values=np.nan))
        in_S = np.ones(S - 1)
        for t, gate_S in enumerate(gates_tS, R - trained_B[b]):
            leave_S = 1 / (1 + np.exp(-gate_S)) if t < R - 1 else 1
            exit_R[t] += np.sum(in_S * leave_S)
            in_S = in_S * (1 - leave_S)
    nll_R = np.sum(nll_BR, axis=0)  # not a number for loops that some sequence did not run
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4)
    sampled = getattr(objective.config, "sampled_heads", None)
    close(sums.loss, nll_R[-1] if sampled is None else nll_R[np.nanargmin(np.abs(nll_R - sums.loss))])
    if sums.loops.loss_R is not None:
        found_R = np.where(np.isnan(nll_R), np.nan, sums.loops.loss_R)
        close(found_R, nll_R)
    if sums.loops.exit_R is not None:
        close(sums.loops.exit_R, exit_R, atol=1e-5)
    assert sums.tokens == B * (S - 1)


def drawn_state(config: Model, sequence: int) -> np.ndarray:
    """A token's own key is that of the step, folded with its sequence and its position."""
    key = jax.random.fold_in(STATE_KEY, sequence)
    rows = [jax.random.truncated_normal(jax.random.fold_in(key, s), -3.0, 3.0, (config.dim,)) for s in range(S)]
    return config.state_init.std * np.float64(rows)


def learns(name: str, config: Model, objective: object) -> bool:
    """Parameters that some choice of values cuts off by definition."""
    if "balance_bias" in name:
        return False  # moved by a rule
    gate_is_used = type(objective).__name__ == "Expected"
    prelude_is_used = isinstance(config.state_init, schema.InputState) or not isinstance(
        config.injection, schema.NoInjection
    )
    if "'gate'" in name and "feed_forward" not in name:
        return gate_is_used
    if name.startswith(("['prelude']", "['prelude_norm']", "['value_embedding']['prelude']")):
        return prelude_is_used
    if name.startswith("['embedding']"):
        return prelude_is_used or config.tie_embeddings or isinstance(config.state_init, schema.EmbeddingState)
    if name == "['core']['first']":
        return config.state_init.learned
    constant = isinstance(config.state_init, schema.ZeroState | schema.VectorState)
    return not (constant and isinstance(config.injection, schema.NoInjection))
