"""A tiny model with parameters of every kind, and gradients for it."""

from typing import Any

import jax
import numpy as np
import pytest

from looplm.config.schema import Balance, ConcatInjection, ExitGate, Model, MoE, ReadOut, ValueEmbedding
from looplm.model.functional import FunctionalLM, Params


@pytest.fixture(scope="session")
def lm() -> FunctionalLM:
    """3 layers, which no mesh of two divides; N * H = 16 is not D = 8."""
    config = Model(
        vocab_size=16, dim=8, num_heads=4, num_kv_heads=2, head_dim=4, hidden_dim=12, block_layers=3, qk_norm=True,
        qk_bias=True, injection=ConcatInjection(), exit_gate=ExitGate(),
        value_embedding=ValueEmbedding(gate_channels=4), read_out=ReadOut(),
        feed_forward=MoE(
            num_experts=4, experts_per_token=2, expert_dim=6, shared_dim=12, balance=Balance(bias_rate=0.1)
        ),
    )  # fmt: skip
    return FunctionalLM(config)


def draw(lm: FunctionalLM, seed: int) -> Params:
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), lm.shapes)


@pytest.fixture(scope="session")
def params(lm: FunctionalLM) -> Params:
    return draw(lm, 0)


@pytest.fixture(scope="session")
def gradients(lm: FunctionalLM) -> list[Params]:
    """Of five steps."""
    return [draw(lm, step) for step in range(1, 6)]


def added(params: Params, updates: Params) -> Params:
    """The sum; what has no update stays."""
    return {
        name: (added(node, updates[name]) if isinstance(node, dict) else node + updates[name])
        if name in updates
        else node
        for name, node in params.items()
    }


@pytest.fixture(scope="session")
def train(params: Params, gradients: list[Params]) -> Any:
    """Runs an optimizer over the gradients of so many steps; returns (params, opt_state) after each."""

    def run(optimizer: Any, num_steps: int) -> list[tuple[Params, Any]]:
        @jax.jit
        def step(params: Params, opt_state: Any, gradient: Params) -> tuple[Params, Any]:
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return added(params, updates), opt_state

        states = [(params, optimizer.init(params))]
        for gradient in gradients[:num_steps]:
            states.append(step(*states[-1], gradient))
        return states[1:]

    return run


@pytest.fixture(scope="session")
def by_path() -> Any:
    """{path: leaf} of a tree."""
    return lambda tree: {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
