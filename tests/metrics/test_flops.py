"""The formulas against a count of the matrix products in the traced program: abstract shapes, nothing is computed."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from looplm.config import schema
from looplm.config.load import load_config, override
from looplm.config.schema import ExitGate, ExpectedCrossEntropy, FinalCrossEntropy, Model, WeightedCrossEntropy
from looplm.metrics.flops import Flops, forward_flops, rematerialised, training_flops, visible_keys
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.objective.base import scoring
from looplm.ops.attention import self_mask
from looplm.optim.guard import guarded
from looplm.train.depth import DepthSchedule
from looplm.train.state import TrainState
from looplm.train.step import build_train_step
from tests.config.shipped import NAMES

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

    @property
    def flops(self) -> Flops:
        """The formula, for the attention that the reference computes."""
        return training_flops(
            self.model, self.objective, sequence_length=S, num_loops=R, trained_loops=self.window, causal=False
        )


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
    "experts_in_attention": Case(dict(attention=schema.MixtureAttention(num_experts=5, experts_per_token=2), **ENDS)),
    "one_expert_in_attention": Case(dict(attention=schema.MixtureAttention(num_experts=1, experts_per_token=1))),
    "tied": Case(dict(tie_embeddings=True, **GATE), ExpectedCrossEntropy()),
}


def products(jaxpr: Jaxpr, trips: int) -> int:
    """FLOPs of all matrix products of a program; its while loops run `trips` times."""
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [products(body, trips) for body in bodies(equation.params)]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[dim] for dim in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * length
        elif name == "ragged_dot_general":
            rows, _ = (variable.aval.shape for variable in equation.invars[:2])
            total += 2 * math.prod(rows) * equation.outvars[0].aval.shape[-1]
        elif name == "cond":
            # Where the platform decides, the last branch is that of accelerators.
            total += inner[-1] if equation.params.get("branches_platforms") else max(inner)
        else:
            total += {"scan": equation.params.get("length"), "while": trips}.get(name, 1) * sum(inner)
    return total


def bodies(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs inside an equation: of jit, scan, while, cond, checkpoint, custom_vjp and whatever comes."""
    for value in parameters.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, ClosedJaxpr | Jaxpr):
                yield body.jaxpr if isinstance(body, ClosedJaxpr) else body


def traced(case: Case, remat: str = "none") -> float:
    return traced_step(
        schema.Run(
            num_steps=1,
            model=case.model,
            loop=schema.Loop(num_loops=R, backprop_loops=case.window, remat=remat),
            objective=case.objective,
            optim=schema.Optim(learning_rate=1.0),
            data=schema.Data(train="", sequence_length=S, batch_tokens=A * B * S, accumulation_steps=A),
        )
    )


def traced_step(run: schema.Run) -> float:
    """FLOPs per token of the real training step, the optimizer left out; the detached loops are as many as at the mean
    depth."""
    length, depths = run.data.sequence_length, DepthSchedule(run)
    lm, optimizer = FunctionalLM(run.model), guarded(optax.sgd(1.0), run.optim.guard)
    step = build_train_step(run, lm, optimizer, depths, dtype=jnp.float32)
    state = TrainState(int32(), lm.shapes, jax.eval_shape(optimizer.init, lm.shapes))
    batch = dict.fromkeys(("tokens", "labels", "segments", "positions"), int32(A, B, length))
    batch |= {"sequence": int32(A, B)} | ({"depth": int32(A, B, 2)} if depths.per_sequence else {})
    program = jax.make_jaxpr(step)(state, batch, int32(2))
    return products(program.jaxpr, trips=run.loop.num_loops - int(depths.window)) / (A * B * length)


def int32(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_costs_what_the_formula_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "checkpoint", lambda function, **_: function)  # cross-entropy always recomputes
    assert traced(CASES[name]) == pytest.approx(CASES[name].flops.total, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_config_costs_what_the_formula_says(name: str) -> None:
    run = load_config(name)
    run = override(run, {"data.batch_tokens": A * B * run.data.sequence_length, "data.accumulation_steps": A})
    window = int(DepthSchedule(run).window)
    formula = training_flops(
        run.model, run.objective, sequence_length=run.data.sequence_length, num_loops=run.loop.num_loops,
        trained_loops=window, causal=False,
    )  # fmt: skip
    formula = rematerialised(formula, run.model, run.objective, run.loop.remat, num_loops=run.loop.num_loops)
    assert traced_step(run) == pytest.approx(formula.hardware, rel=1e-3)


@pytest.mark.parametrize("remat", ["none", "layer", "loop", "names", "offload"])
@pytest.mark.parametrize(
    "name", ["expected", "extras", "truncated_concat", "read_out", "experts_among_dense", "experts_in_attention"]
)
def test_recomputation_costs_what_the_formula_says(name: str, remat: Any) -> None:
    case = CASES[name]
    formula = rematerialised(case.flops, case.model, case.objective, remat, num_loops=R)
    assert formula.total == case.flops.total < formula.hardware
    assert traced(case, remat) == pytest.approx(formula.hardware, rel=1e-6)


@pytest.mark.parametrize("read", ["last", "all"])
@pytest.mark.parametrize("name", ["concat", "diagonal", "expected"])
def test_a_forward_pass_costs_what_the_formula_says(name: str, read: Any) -> None:
    model = CASES[name].model
    lm = FunctionalLM(model)

    def score(params: Any, ids_BS: jax.Array, key: jax.Array) -> Any:
        bound = lm.bind(params)
        context = Context(ids_BS, self_mask(model, ids_BS), key=key, sequence_B=jnp.arange(B))
        output = Forward(bound, ids_BS, context, Depth(R), jnp.float32)(read, scoring(bound, ids_BS))
        return output.read, output.gate_logits_RBS

    program = jax.make_jaxpr(score)(lm.shapes, int32(B, S), jax.eval_shape(lambda: jax.random.key(0)))
    formula = forward_flops(model, sequence_length=S, num_loops=R, num_reads=R if read == "all" else 1, causal=False)
    assert products(program.jaxpr, trips=0) / (B * S) == pytest.approx(formula.total, rel=1e-6)


@pytest.mark.parametrize("kind", ["causal", "full"])
@pytest.mark.parametrize("window", [None, 1, 7, S, S + 5])
def test_visible_keys_are_those_of_the_mask(kind: Any, window: int | None) -> None:
    model = Model(**SIZES, attention_mask=kind, attention_window=window)
    mask_BST = self_mask(model, jnp.zeros((1, S), jnp.int32)).dense(S)
    assert visible_keys(model, S) == pytest.approx(np.sum(mask_BST) / S)


def test_a_causal_kernel_saves_the_keys_that_nobody_sees() -> None:
    def total(causal: bool) -> float:
        model = Model(**SIZES, **ENDS)
        flops = training_flops(
            model, FinalCrossEntropy(), sequence_length=S, num_loops=R, trained_loops=R, causal=causal
        )
        return flops.total

    layers, width = 3 + 2 * R + 1, 6 * 10
    assert total(False) - total(True) == pytest.approx(3 * layers * 4 * width * (S - (S + 1) / 2))
