"""Tiny models with random weights in every tensor, and a way to run them without a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    """Noise in every tensor: norm scales off 1, gates and biases off 0. `init` would have to be compiled."""

    def draw(lm: FunctionalLM) -> Params:
        noise = np.random.default_rng(1)

        def tensor(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            mean = 1.0 if path[-1].key == "scale" else 0.0
            return jnp.asarray(noise.normal(mean, 0.15, leaf.shape), leaf.dtype)

        return jax.tree.map_with_path(tensor, lm.shapes)

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
