"""Tiny models with random weights in every tensor, and a way to run them without a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from looplm.config.schema import ConcatInjection, ExitGate, Model
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.model.output import Output
from looplm.ops.attention import self_mask

VOCAB, B, S = 37, 2, 11


@pytest.fixture(scope="session")
def model_config() -> Callable[..., Model]:
    """A config that has every part; fields can be replaced."""
    full = dict(
        vocab_size=VOCAB, dim=24, num_heads=4, num_kv_heads=2, hidden_dim=40, prelude_layers=1, block_layers=2,
        coda_layers=1, norm_placement="sandwich", norm_at_loop_end=True, injection=ConcatInjection(),
        exit_gate=ExitGate(),
    )  # fmt: skip
    return lambda **fields: Model(**{**full, **fields})


@pytest.fixture(scope="session")
def random_params() -> Callable[[FunctionalLM], Params]:
    """Like `init`, but with norm scales off 1, and gates and biases off 0."""

    def draw(lm: FunctionalLM) -> Params:
        leaves, tree = jax.tree.flatten(lm.init(jax.random.key(0)))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, noisy)

    return draw


@pytest.fixture(scope="session")
def tokens_BS() -> jax.Array:
    return jax.random.randint(jax.random.key(2), (B, S), 0, VOCAB)


@pytest.fixture(scope="session")
def run_model() -> Callable[..., Output]:
    """Calls the model on whole sequences, in float32; compiled, which is faster than one operation after the other."""

    def run(
        lm: FunctionalLM, params: Params, tokens_BS: jax.Array, depth: Depth, *, segments_BS: Any = None, **options: Any
    ) -> Output:
        positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        segments_BS = jnp.zeros_like(tokens_BS) if segments_BS is None else segments_BS
        context = Context(
            positions_BS, self_mask(lm.config, segments_BS), options.pop("remat", "none"), options.pop("unroll", False)
        )
        reads = options.pop("reads", "all")

        def call(params: Params) -> Output:
            return Forward(lm.bind(params), tokens_BS, context, depth, jnp.float32, **options)(reads)

        return jax.jit(call)(params)

    return run
