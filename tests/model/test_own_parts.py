"""Parts that are defined outside of looplm, against what the shipped ones give."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.api import LoadedLM
from looplm.config.schema import FinalCrossEntropy, Loop, Model, WeightedCrossEntropy
from looplm.infer.generate import generate
from looplm.model.depth import Depth
from looplm.model.functional import FunctionalLM
from tests.own_parts import LeaveAfter, MeanCore, MeanCrossEntropy

R = 4


@pytest.fixture
def plain(model_config: Callable[..., Model]) -> FunctionalLM:
    return FunctionalLM(model_config(prelude_layers=0, block_layers=1, coda_layers=0, final_norm=False))


def with_parts(lm: FunctionalLM, **parts: object) -> FunctionalLM:
    return FunctionalLM(lm.config.model_copy(update=parts))


def test_a_core_with_a_state_of_several_arrays(plain, random_params, tokens_BS, run_model) -> None:
    params = random_params(plain)
    shipped_RBSD = run_model(plain, params, tokens_BS, Depth(R)).read
    own = with_parts(plain, core=MeanCore())
    read_RBSD = run_model(own, params | {"core": {"inner": params["core"]}}, tokens_BS, Depth(R)).read
    for r in range(R):
        np.testing.assert_allclose(read_RBSD[r], jnp.mean(shipped_RBSD[: r + 1], axis=0), rtol=2e-5, atol=2e-6)


def test_a_halting_rule_in_training_and_in_generation(plain, random_params, tokens_BS) -> None:
    params, own = random_params(plain), with_parts(plain, halting=LeaveAfter(loops=2))
    labels_BS = jnp.roll(tokens_BS, -1, axis=1)
    early, late = (
        jax.jit(LoadedLM(lm.config, Loop(num_loops=loops), FinalCrossEntropy(), params).loss_and_grads)(
            tokens_BS, labels_BS
        )
        for lm, loops in ((own, R), (plain, 2))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), early, late)

    def written(lm: FunctionalLM, num_loops: int) -> list[list[int]]:
        rows = generate(
            lm, params, [np.array([3, 1]), np.array([4])], num_loops=num_loops, max_tokens=6,
            temperature=0.0, seed=0, end_ids=[], num_ids=lm.config.vocab_size,
        )  # fmt: skip
        return [row.tokens.tolist() for row in rows]

    assert written(own, R) == written(plain, 2) != written(plain, R)


def test_an_objective(plain, random_params, tokens_BS) -> None:
    lm = LoadedLM(plain.config, Loop(num_loops=R), MeanCrossEntropy(), random_params(plain))
    labels_BS = jnp.roll(tokens_BS, -1, axis=1)
    own, shipped = (
        jax.jit(partial(lm.loss_and_grads, objective=objective))(tokens_BS, labels_BS)
        for objective in (None, WeightedCrossEntropy())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), own, shipped)
