"""What is counted in a traced program, against formulas (`flops_by_hand.py`): abstract shapes, nothing is computed."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from looplm.config import schema
from looplm.config.load import load_config, override
from looplm.config.schema import ExitGate, ExpectedCrossEntropy, FinalCrossEntropy, Model, WeightedCrossEntropy
from looplm.model.functional import FunctionalLM
from looplm.model.injection import Injection
from looplm.model.layers import parameter
from looplm.ops.attention import Mask
from looplm.optim.guard import guarded
from looplm.sharding.collective import use
from looplm.sharding.mesh import build_mesh
from looplm.train.batch import PER_TOKEN, Batch
from looplm.train.carrying import build_carrying
from looplm.train.depth import DepthSchedule
from looplm.train.flops import Flops, StepFlops, step_flops
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.step import build_train_step
from tests.config.shipped import NAMES
from tests.train.flops_by_hand import rematerialised, training_flops

A, B, S, R = 2, 3, 23, 4
"""Micro-batches, sequences in each, tokens in each, loops."""
SIZES = dict(vocab_size=160, dim=48, num_heads=6, num_kv_heads=2, head_dim=10, hidden_dim=88, block_layers=2)
"""Every dim is another, and the head size is not dim / num_heads."""
ENDS = dict(prelude_layers=3, coda_layers=1)
GATE = dict(exit_gate=ExitGate())
SHAPE = dict(num_experts=7, experts_per_token=3, expert_dim=26)
EXPERTS = schema.MoE(**SHAPE, shared_dim=14, balance=schema.Balance(bias_rate=0.1, auxiliary_weight=0.1))


class Case(NamedTuple):
    fields: dict[str, Any]
    """Of the model, beside SIZES."""
    objective: schema.Objective = FinalCrossEntropy()
    window: int = R
    """Loops with gradient."""

    @property
    def model(self) -> Model:
        return Model(**{**SIZES, **self.fields})


CASES = {
    "plain": Case({}),
    "prelude_and_coda": Case(ENDS),
    "ungrouped_heads": Case(dict(num_kv_heads=None, head_dim=None)),
    "add": Case(dict(injection=schema.AddInjection(), state_init=schema.ZeroState(), **ENDS)),
    "concat": Case(dict(injection=schema.ConcatInjection(), state_init=schema.NormalState(), **ENDS)),
    "diagonal": Case(dict(injection=schema.DiagonalInjection(), state_init=schema.EmbeddingState(), **ENDS)),
    "gelu": Case(dict(feed_forward=schema.GELU())),
    "relu2": Case(dict(feed_forward=schema.SquaredReLU())),
    "extras": Case(dict(norm_placement="sandwich_sum", norm_at_loop_end=True, qk_norm=True, qk_bias=True)),
    "truncated": Case({}, window=2),
    "truncated_ends": Case(ENDS, window=2),
    "truncated_add": Case(dict(injection=schema.AddInjection(), **ENDS), window=1),
    "truncated_concat": Case(dict(injection=schema.ConcatInjection(), **ENDS), window=3),
    "truncated_diagonal": Case(dict(injection=schema.DiagonalInjection(), **ENDS), window=2),
    "final_with_gate": Case(GATE),
    "expected": Case(GATE | ENDS, ExpectedCrossEntropy()),
    "expected_truncated": Case(GATE | dict(injection=schema.ConcatInjection()), ExpectedCrossEntropy(), window=2),
    "expected_sampled": Case(GATE | ENDS, ExpectedCrossEntropy(sampled_heads=2)),
    "weighted": Case(ENDS, WeightedCrossEntropy()),
    "weighted_sampled": Case(ENDS, WeightedCrossEntropy(weights="linear", sampled_heads=3)),
    "weighted_sampled_all": Case({}, WeightedCrossEntropy(sampled_heads=R + 1)),
    "elastic": Case(ENDS, schema.ElasticCrossEntropy()),
    "gate": Case(GATE | ENDS, schema.GateImprovement()),
    "gate_diagonal": Case(GATE | dict(injection=schema.DiagonalInjection()), schema.GateImprovement(), window=3),
    "read_out": Case(dict(read_out=schema.ReadOut(), **ENDS), WeightedCrossEntropy(), window=3),
    "value_embedding": Case(dict(value_embedding=schema.ValueEmbedding(gate_channels=9), **ENDS), window=2),
    "every_value": Case(dict(value_embedding=schema.ValueEmbedding(every=1, gate_channels=9), **ENDS)),
    "experts": Case(dict(feed_forward=EXPERTS, **ENDS)),
    "experts_among_dense": Case(
        dict(
            feed_forward=schema.MoE(**SHAPE, expert="relu", dense_layers=(1,), dense=schema.GELU(), loop_biases=2),
            coda_feed_forward=schema.SwiGLU(),
            prelude_feed_forward=EXPERTS,
            injection=schema.AddInjection(),
            **ENDS,
        ),
        window=2,
    ),
    "attention_of_every_loop": Case(dict(attention_loops=R, norm_loops=2, qk_norm=True, **ENDS), window=2),
    "router_of_every_loop": Case(dict(feed_forward=schema.MoE(**SHAPE, router_loops=R), **ENDS)),
    "experts_in_attention": Case(dict(attention=schema.MixtureAttention(num_experts=5, experts_per_token=2), **ENDS)),
    "one_expert_in_attention": Case(dict(attention=schema.MixtureAttention(num_experts=1, experts_per_token=1))),
    "memory": Case(dict(memory=schema.SegmentMemory(length=S + 8), injection=schema.AddInjection(), **ENDS)),
    "tied": Case(dict(tie_embeddings=True, **GATE), ExpectedCrossEntropy()),
}


NEAR_OTHERS = (
    "ungrouped_heads", "relu2", "truncated_add", "truncated_concat", "truncated_diagonal", "expected_truncated",
    "weighted_sampled", "gate_diagonal", "every_value", "one_expert_in_attention", "concat", "truncated",
)  # fmt: skip
"""What they have of their own the other cases have too, one by one; not in the default suite."""


def run_of(case: Case, **loop: Any) -> schema.Run:
    return schema.Run(
        num_steps=1,
        model=case.model,
        loop=schema.Loop(**(dict(num_loops=R, backprop_loops=case.window, remat="none") | loop)),
        objective=case.objective,
        optim=schema.Optim(learning_rate=1.0),
        data=schema.Data(train="", sequence_length=S, batch_tokens=A * B * S, accumulation_steps=A),
    )


def counted(run: schema.Run) -> StepFlops:
    """What the real training step costs on one device, with an optimizer that has no products."""
    length, depths = run.data.sequence_length, DepthSchedule(run)
    lm, optimizer = FunctionalLM(run.model), guarded(optax.sgd(1.0), run.optim.guard)
    step = build_train_step(run, lm, optimizer, depths, dtype=jnp.float32)
    depth = int32(A, B, 2) if depths.per_sequence else None
    batch = Batch(*[int32(A, B, length)] * len(PER_TOKEN), sequence=int32(A, B), depth=depth)
    carrying, carry = build_carrying(run), None
    if carrying is not None:
        states = jax.ShapeDtypeStruct((A, B, length, run.model.dim), jnp.float32)
        carry = jax.eval_shape(partial(carrying.empty, batch), states)
    state = TrainState(int32(), lm.shapes, jax.eval_shape(optimizer.init, lm.shapes), carry)
    return step_flops(jax.jit(step).trace(state, batch, int32(2)).jaxpr)


def int32(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def by_hand(run: schema.Run, detached: int, trained: int) -> Flops:
    """The formula for a step of A * B sequences."""
    S = run.data.sequence_length
    loops = dict(num_loops=detached + trained, trained_loops=trained)
    needed, done = (
        training_flops(run.model, run.objective, sequence_length=S, causal=causal, **loops) for causal in (True, False)
    )
    done = rematerialised(done, run.model, run.objective, run.loop.remat, num_loops=detached + trained)
    return Flops(A * B * S * needed.total, A * B * S * done.hardware)


UNKNOWN = (
    "urm", "compressive", "transformer_xl", "loopformer", "hyperloop:mhc", "hyperloop:tiny", "elt:l", "elt:xl",
)  # fmt: skip
"""The formula knows no short convolution, no relative positions, no compression, no trajectory, no mixes of residual
streams (of the larger sizes of hyperloop they are below the bound) and no padded head, for which elt pays; the case
`elastic` has its objective without."""
BY_HAND = [
    name
    for name in NAMES
    if isinstance(load_config(name).model.core, schema.SingleCore) and not name.startswith(UNKNOWN)
]
"""The formula knows one state and no convolution; of two states, tests/model/test_two_speed.py has the cost."""
TELLING = ("huginn", "looped_moe", "mor", "universal_transformer")
FIRST_SIZES = {name.partition(":")[0]: name for name in reversed(BY_HAND) if name.startswith(TELLING)}.values()
"""One size of some files: what a step costs is told by the same formula for all of them."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in NEAR_OTHERS else []) for name in CASES]
)
def test_a_step_costs_what_the_formula_says(name: str) -> None:
    run = run_of(CASES[name])
    assert counted(run).at(0) == pytest.approx(by_hand(run, R - CASES[name].window, CASES[name].window), rel=1e-6)


@pytest.mark.parametrize(
    "remat", ["loop", "names", *(pytest.param(remat, marks=pytest.mark.slow) for remat in ("layer", "offload"))]
)
@pytest.mark.parametrize(
    "name",
    [
        "expected",
        "experts_among_dense",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("extras", "truncated_concat", "read_out", "experts_in_attention")
        ),
    ],
)
def test_what_is_recomputed_is_done_and_not_needed(name: str, remat: Any) -> None:
    run = run_of(CASES[name], remat=remat)
    flops = counted(run).at(0)
    assert flops == pytest.approx(by_hand(run, R - CASES[name].window, CASES[name].window), rel=1e-6)
    assert flops.model < flops.hardware


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FIRST_SIZES else pytest.mark.slow) for n in BY_HAND])
def test_every_shipped_config_costs_what_the_formula_says_at_any_depth(name: str) -> None:
    run = load_config(name)
    batch = {"data.batch_tokens": A * B * run.data.sequence_length, "data.accumulation_steps": A}
    run = override(run, batch | {"model.attention_backend": "dense"})  # the formula's: no score is computed twice
    window, flops = int(DepthSchedule(run).window), counted(run)
    depths = [(max(0, run.loop.num_loops - window), window)]
    if not isinstance(run.loop.depth, schema.FixedDepth):
        depths += [(0, 1), (0, window), (3, window), (100, window)]
    for detached, trained in depths:
        formula = by_hand(run, detached, trained)
        assert flops.at(detached, trained / window).model == pytest.approx(formula.model, rel=1e-3)
        if trained == window:
            assert flops.at(detached).hardware == pytest.approx(formula.hardware, rel=1e-3)


@pytest.mark.parametrize(
    ("objective", "per"),
    [(FinalCrossEntropy(), "batch"), (ExpectedCrossEntropy(), "batch"), (WeightedCrossEntropy(), "sequence")],
)
def test_a_step_with_fewer_loops_than_the_window_needs_less(objective: schema.Objective, per: Any) -> None:
    case = Case(GATE | ENDS | dict(injection=schema.ConcatInjection()), objective, window=3)
    depth = dict(depth=schema.UniformDepth(min_loops=1, max_loops=6), depth_per=per)
    flops = counted(run := run_of(case, **depth))
    for detached, trained in [(0, 1), (0, 2), (0, 3), (2, 3)]:
        model = flops.at(detached, trained / 3).model
        assert model == pytest.approx(by_hand(run, detached, trained).model, rel=1e-6)


@pytest.mark.parametrize(
    "backend", ["ragged", *(pytest.param(name, marks=pytest.mark.slow) for name in ("blocks", "reference"))]
)
def test_only_the_chosen_experts_are_needed_whatever_computes_them(backend: Any) -> None:
    run = run_of(CASES["experts"])
    other = override(run, {"model.feed_forward.backend": backend})
    assert counted(other).at(0).model == pytest.approx(by_hand(run, 0, R).model, rel=1e-6)


def test_places_of_a_capacity_are_done_and_only_the_choices_needed() -> None:
    run = run_of(CASES["experts"])
    limited = counted(override(run, {"model.feed_forward.capacity_factor": 3.0})).at(0)
    assert limited.model == pytest.approx(by_hand(run, 0, R).model, rel=1e-6)
    assert limited.hardware > 1.2 * by_hand(run, 0, R).hardware


FROZEN = {"head": 48 * 160, "feed_forward": R * 2 * 48 * (7 + 3 * 3 * 26 + 3 * 14)}
"""Entries of the matrices that a token meets in R loops: of the head, and of two layers' experts and routers."""


@pytest.mark.parametrize("part", FROZEN)
def test_what_is_frozen_costs_no_gradient(part: str) -> None:
    run = run_of(Case(dict(feed_forward=EXPERTS)))
    frozen = counted(override(run, {"optim.frozen": [part]})).at(0)
    assert by_hand(run, 0, R).model - frozen.model == pytest.approx(A * B * S * 2 * FROZEN[part], rel=1e-6)


def test_all_devices_together_do_what_one_would() -> None:
    sizes = dict(num_heads=4, num_kv_heads=2, head_dim=8, dim=32, hidden_dim=64)
    experts = schema.MoE(num_experts=8, experts_per_token=2, expert_dim=16, shared_dim=16)
    case = Case(ENDS | sizes | dict(feed_forward=experts, coda_feed_forward=schema.SwiGLU()))
    run = override(
        run_of(case), {"data.sequence_length": 32, "data.batch_tokens": 8 * 32, "data.accumulation_steps": 1}
    )
    run = override(run, {"mesh.expert": 2, "mesh.tensor": 2, "mesh.fsdp": 2})
    one = training_flops(run.model, run.objective, sequence_length=32, num_loops=R, trained_loops=R).total
    flops = step_flops(Program(run, build_mesh(run.mesh)).trace().jaxpr).at(0)
    assert flops.model == pytest.approx(8 * 32 * one, rel=1e-6)


def test_an_optimizer_with_products_is_done_and_no_model_flops() -> None:
    run = run_of(Case({}))
    muon = override(run, {"optim.optimizer": schema.Muon()})
    plain, with_muon = (
        step_flops(Program(r, build_mesh(schema.Mesh(), jax.devices()[:1])).trace().jaxpr).at(0) for r in (run, muon)
    )
    assert with_muon.model == plain.model
    assert with_muon.hardware > plain.hardware


class Twice(schema.OwnInjection):
    """An injection that nobody here knows, with two products of (D, D) matrices."""

    def build(self, model: Model, *, rngs: nnx.Rngs) -> Injection:
        return Products(model.dim, rngs)


class Products(Injection):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        init, axes = nnx.initializers.normal(0.02), ("embed", "embed_out")
        self.first, self.second = (parameter(rngs, init, (dim, dim), axes) for _ in range(2))

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return input_BSD + state_BSD @ use(self.first, state_BSD.dtype) @ use(self.second, state_BSD.dtype)


def test_a_part_of_a_users_own_is_counted() -> None:
    """Its two products are as large as the one of the injection by concatenation."""
    own, shipped = (run_of(Case(dict(injection=i), window=3)) for i in (Twice(), schema.ConcatInjection()))
    assert counted(own).at(0) == pytest.approx(counted(shipped).at(0))


@pytest.mark.parametrize(
    ("core", "loops", "calls"),
    [
        (schema.TwoSpeedCore(inner_loops=2), (2, 2), (6, 6)),
        (schema.TwoSpeedCore(inner_loops=3, inner_backprop=1, high_layers=2), (2, 1), (8, 2)),
        (schema.TwoSpeedCore(inner_loops=3, inner_backprop=(1, 2), high_layers=2), (2, 2), (8, 5)),
    ],
    ids=["one block", "cut", "cut by a table"],
)
def test_every_call_of_a_block_counts_as_a_loop_of_one_state(core: Any, loops: tuple, calls: tuple) -> None:
    """(loops, those with gradient), and the same of the calls of a block in them."""

    def cost(core: Any, num_loops: int, backprop_loops: int) -> Flops:
        fields = dict(core=core, injection=schema.AddInjection(), state_init=schema.VectorState())
        return counted(run_of(Case(fields), num_loops=num_loops, backprop_loops=backprop_loops)).at(0)

    assert cost(core, *loops) == pytest.approx(cost(schema.SingleCore(), *calls))


X, W = jnp.ones((8, 3)), jnp.ones((3, 5))
PRODUCT = 2 * 8 * 3 * 5


def kernel(x: Any, w: Any, out: Any) -> None:
    out[...] = x[...] @ w[...]


def call_kernel(estimate: pl.CostEstimate | None) -> jax.Array:
    return pl.pallas_call(kernel, jax.ShapeDtypeStruct((8, 5), jnp.float32), grid=(4,), cost_estimate=estimate)(X, W)


def what_nobody_reads() -> jax.Array:
    """A scan and a condition, of each of which one product is read and another is not."""
    (x, _), _ = jax.lax.scan(lambda c, _: ((c[0] @ W @ W.T, X @ W), None), (X, X @ W), length=2)
    return jax.lax.cond(X[0, 0] > 0, lambda: (x @ W, X @ W), lambda: (x @ W, X @ W))[0]


def on_each_of_eight() -> jax.Array:
    mesh = jax.make_mesh((8,), ("data",))
    return jax.shard_map(
        lambda x: jax.lax.pcast(x @ W, ("data",), to="varying"), mesh=mesh, in_specs=P(), out_specs=P("data")
    )(X)


def gradient_with_recomputation() -> jax.Array:
    return jax.value_and_grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x) @ W))(x)))(X)


PROGRAMS: dict[str, tuple[Callable[[], Any], float]] = {
    "product": (lambda: X @ W, PRODUCT),
    "batched": (lambda: jnp.einsum("bij,bjk->bik", X.reshape(2, 4, 3), jnp.stack([W, W])), PRODUCT),
    "groups": (lambda: jax.lax.ragged_dot(X, jnp.stack([W] * 4), jnp.array([2, 3, 1, 2])), PRODUCT),
    "scan": (lambda: jax.lax.scan(lambda c, _: (c, X @ W), 0, length=6), 6 * PRODUCT),
    "loop_of_known_length": (lambda: jax.lax.fori_loop(0, 6, lambda _, y: X @ W, jnp.zeros((8, 5))), 6 * PRODUCT),
    "loop": (lambda: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: X @ W, jnp.zeros((8, 5))), PRODUCT),
    "condition": (lambda: jax.lax.cond(X[0, 0] > 0, lambda: X @ W, lambda: X @ W + X @ W), 2 * PRODUCT),
    "recomputed": (gradient_with_recomputation, 3 * PRODUCT),
    "each_device": (on_each_of_eight, 8 * PRODUCT),
    "convolution": (lambda: jnp.convolve(jnp.ones(20), jnp.ones(4), mode="valid"), 2 * 17 * 4),
    "kernel": (lambda: call_kernel(None), 4 * PRODUCT),
    "kernel_with_estimate": (lambda: call_kernel(pl.CostEstimate(flops=77, bytes_accessed=0, transcendentals=0)), 77),
    "unread": (what_nobody_reads, 2 * 2 * PRODUCT + PRODUCT),
    "elementwise": (lambda: jnp.sum(jnp.sin(X) * X), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_are_counted_wherever_they_are(name: str) -> None:
    program, flops = PROGRAMS[name]
    assert step_flops(jax.make_jaxpr(program)()).at(0).hardware == flops


@pytest.mark.parametrize("kind", ["causal", "full"])
@pytest.mark.parametrize("window", [None, 1, 7, S, S + 5])
@pytest.mark.parametrize("queries", [1, 9, S])
def test_mean_keys_are_those_of_the_mask(kind: Any, window: int | None, queries: int) -> None:
    mask = Mask(kind, window, S)
    assert mask.mean_keys(queries) == pytest.approx(np.sum(mask.dense(queries)) / queries)
