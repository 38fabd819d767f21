"""What decays, what moves how far, and the clipping."""

import jax
import numpy as np
import optax
import pytest

from looplm.config.schema import AdamW, DiagonalInjection, ExitGate, Model, Muon, Optim, ReadOut, Schedule
from looplm.model.functional import FunctionalLM
from looplm.optim.build import build_optimizer
from looplm.optim.groups import decay_mask

CONSTANT = Schedule(decay="constant")


def optimizer(lm: FunctionalLM, **fields):
    return build_optimizer(Optim(**{"learning_rate": 0.01, "schedule": CONSTANT, "clip_norm": None} | fields), lm, 10)


@pytest.fixture(scope="module")
def moves(train, params, by_path):
    """How far every parameter moves in the first step(s) of an optimizer, by path."""

    def run(optimizer, num_steps: int = 1) -> dict[str, np.ndarray]:
        trained = by_path(train(optimizer, num_steps)[-1][0])
        return {path: np.asarray(trained[path] - leaf) for path, leaf in by_path(params).items()}

    return run


@pytest.fixture(scope="module")
def usual(lm, moves):
    return moves(optimizer(lm))


def test_norms_biases_and_what_says_so_do_not_decay(by_path) -> None:
    config = Model(
        vocab_size=9, dim=8, num_heads=2, hidden_dim=8, block_layers=1, exit_gate=ExitGate(), qk_bias=True,
        qk_norm=True, injection=DiagonalInjection(), read_out=ReadOut(),
    )  # fmt: skip
    mask = by_path(decay_mask(FunctionalLM(config)))
    kept = {path for path, decays in mask.items() if not decays}
    injection = {path for path in mask if path.startswith("core/injection/")}
    assert kept == injection | {"read_out/kernel"} | {path for path in mask if path.endswith(("/scale", "/bias"))}
    assert len(injection) == 3
    assert mask["embedding/table"]
    assert mask["gate/kernel"]


def test_adamw_is_that_of_optax(lm, params, train, moves, by_path, usual) -> None:
    config = AdamW()
    reference = optax.adamw(
        0.01, config.beta1, config.beta2, config.eps, weight_decay=config.weight_decay, mask=decay_mask(lm)
    )
    for path, expected in moves(reference).items():
        np.testing.assert_allclose(usual[path], expected, rtol=1e-5, atol=1e-8, err_msg=path)


@pytest.mark.parametrize(("field", "prefix"), [("gate_rate", "gate/"), ("injection_rate", "core/injection/")])
def test_a_rate_is_a_multiple_for_its_parameters_alone(field: str, prefix: str, lm, moves, usual) -> None:
    frozen, doubled = moves(optimizer(lm, **{field: 0.0}), 2), moves(optimizer(lm, **{field: 2.0}))
    assert any(path.startswith(prefix) for path in usual)
    for path, move in usual.items():
        factor = 2.0 if path.startswith(prefix) else 1.0
        np.testing.assert_allclose(doubled[path], factor * move, rtol=1e-4, atol=1e-6, err_msg=path)
        assert np.any(frozen[path]) == (not path.startswith(prefix)), path


def test_training_the_gate_alone_moves_nothing_else(lm, moves, usual) -> None:
    config = Optim(learning_rate=0.01, schedule=CONSTANT, clip_norm=None)
    moved = moves(build_optimizer(config, lm, 10, frozenset({"gate"})), 1)
    for path, move in moved.items():
        np.testing.assert_array_equal(move, usual[path] if path.startswith("gate/") else 0.0, err_msg=path)


def test_what_muon_leaves_to_adamw_has_its_own_rate(lm, moves, usual) -> None:
    moved = moves(optimizer(lm, optimizer=Muon(adamw_rate=3.0), gate_rate=0.5))
    for path in ("embedding/table", "head", "core/block/layers/attention/query/bias"):
        np.testing.assert_allclose(moved[path], 3.0 * usual[path], rtol=1e-4, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(moved["gate/kernel"], 1.5 * usual["gate/kernel"], rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_to_its_global_norm(lm, gradients, train) -> None:
    ((_, opt_state),) = train(optimizer(lm, clip_norm=0.5), 1)
    # Adam's first moment after one step is a tenth of what it was given.
    first_moment = optax.tree.get(opt_state, "mu")
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradients[0])))
    expected = jax.tree.map(lambda leaf: 0.1 * 0.5 * leaf / norm, gradients[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first_moment, expected)
