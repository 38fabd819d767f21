"""A capacity of experts holds in training alone: who scores or writes with the model does not know of it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.api import LoadedLM
from looplm.config.schema import FinalCrossEntropy, Loop, Mesh, Model, MoE
from looplm.eval.score import Scorer
from looplm.model.functional import FunctionalLM
from looplm.sharding.mesh import build_mesh
from looplm.train.batch import Batch
from looplm.train.depth import DepthSchedule
from looplm.train.step import build_loss

LOOP = Loop(num_loops=2)


@cache
def loaded(capacity_factor):
    experts = MoE(num_experts=4, experts_per_token=2, expert_dim=8, capacity_factor=capacity_factor)
    model = Model(vocab_size=40, dim=16, num_heads=2, hidden_dim=16, block_layers=1, feed_forward=experts)
    return LoadedLM(model, LOOP, FinalCrossEntropy(), FunctionalLM(model).init(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
    stream_BS = np.random.default_rng(0).integers(0, 40, (8, 13), dtype=np.int32)
    zeros_BS = np.zeros((8, 12), np.int32)
    return Batch(
        tokens=stream_BS[:, :-1],
        labels=stream_BS[:, 1:],
        segments=zeros_BS + 1,
        positions=zeros_BS + np.arange(12, dtype=np.int32),
        sequence=np.arange(8, dtype=np.int32),
    )


def trained(lm, tiny_run, batch):
    """What a step of training computes, the objective and the dropped choices."""
    run = tiny_run(**{"loop.num_loops": 2}).model_copy(update={"model": lm.model, "objective": lm.objective})
    sums = build_loss(run, lm.functional, DepthSchedule(run), dtype=jnp.float32)
    stand_ins = jax.tree.map(jnp.zeros_like, lm.params)
    _, (result, _) = jax.jit(sums)(stand_ins, lm.params, batch, None, jnp.zeros(2, jnp.int32), jnp.int32(0))
    return float(result.objective / result.tokens), int(result.routers.moe["block"].dropped)


def test_a_step_and_its_gradient_are_those_of_limited_experts(tiny_run, batch):
    (limited, dropped), (free, nothing) = (trained(loaded(factor), tiny_run, batch) for factor in (0.5, None))
    assert dropped > nothing == 0
    assert abs(limited - free) > 1e-4
    loss, _ = jax.jit(loaded(0.5).loss_and_grads)(batch.tokens, batch.labels)
    np.testing.assert_allclose(loss, limited, rtol=1e-5)


def test_scores_and_calls_are_those_of_experts_without_a_limit(batch):
    mesh = build_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1])
    nll = [Scorer(lm.functional, mesh, 2)(lm.params, batch._asdict()).nll_RBS for lm in (loaded(0.5), loaded(None))]
    np.testing.assert_array_equal(*nll)
    logits = [lm(batch.tokens).logits(2) for lm in (loaded(0.5), loaded(None))]
    np.testing.assert_array_equal(*logits)
