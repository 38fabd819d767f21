"""Muon against Newton-Schulz iterations written out in numpy, one matrix after the other."""

import numpy as np
import optax
import pytest

from looplm.config.schema import AdamW, Muon, Optim, Schedule
from looplm.optim.build import build_optimizer
from looplm.optim.groups import decay_mask, muon_labels

RATE, MOMENTUM, STEPS, DECAY, ADAM_DECAY = 0.5, 0.9, 4, 0.3, 0.2
NUM_STEPS = 3
D = 8
AS_MATRIX = {
    "query/project/kernel": (D, 16),
    "key/project/kernel": (D, 8),
    "value/kernel": (D, 8),
    "output/kernel": (16, D),
    "shared/gate/kernel": (D, 12),
    "up/kernel": (D, 12),
    "down/kernel": (12, D),
    "experts/up": (D, 6),
    "experts/gate": (D, 6),
    "experts/down": (6, D),
    "router/kernel": (D, 4),
    "injection/linear/kernel": (2 * D, D),
    "value_gates/linear/kernel": (4, 2),
}
"""(inputs, outputs) of every linear map of a layer and of the injection."""
STACKS = {"injection/linear/kernel": 1, "value_gates/linear/kernel": 2} | dict.fromkeys(
    ("experts/up", "experts/gate", "experts/down"), 3 * 4
)
"""How many there are of what is not in each of the 3 layers."""


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """Jordan et al. 2024: X <- a X + (b A + c A A) X with A = X X^T, rows being the shorter side."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    x = matrix / (np.sqrt(np.sum(matrix**2)) + 1e-8)
    for _ in range(STEPS):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon(matrix: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """The matrix after so many steps."""
    mean = np.zeros_like(matrix)
    for t, gradient in enumerate(gradients, 1):
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        ahead = mean / (1 - MOMENTUM ** (t + 1))
        nesterov = MOMENTUM * ahead + (1 - MOMENTUM) * gradient / (1 - MOMENTUM**t)
        direction = 0.2 * np.sqrt(max(matrix.shape)) * orthogonalised(nesterov)
        matrix = matrix - RATE * (direction + DECAY * matrix)
    return matrix


@pytest.fixture(scope="module")
def trained(lm, train, by_path):
    config = Optim(
        learning_rate=RATE,
        optimizer=Muon(
            momentum=MOMENTUM, newton_schulz_steps=STEPS, weight_decay=DECAY, adamw=AdamW(weight_decay=ADAM_DECAY)
        ),
        schedule=Schedule(decay="constant"),
        clip_norm=None,
    )
    return by_path(train(build_optimizer(config, lm, 10), NUM_STEPS)[-1][0])


@pytest.mark.parametrize("name", AS_MATRIX)
def test_every_layer_is_orthogonalised_by_itself(name: str, trained, params, gradients, by_path) -> None:
    (path,) = [path for path in trained if path.endswith(name)]
    shape = (-1, *AS_MATRIX[name])
    stack = np.asarray(by_path(params)[path], np.float64).reshape(shape)
    history = [np.asarray(by_path(gradient)[path], np.float64).reshape(shape) for gradient in gradients[:NUM_STEPS]]
    assert len(stack) == STACKS.get(name, 3)
    for layer, matrix in enumerate(stack):
        expected = muon(matrix, [gradient[layer] for gradient in history])
        # An iteration multiplies small singular values, and their rounding errors, by 3.4.
        np.testing.assert_allclose(np.reshape(trained[path], shape)[layer], expected, atol=1e-5)


def test_all_else_is_adamw(lm, trained, train, by_path) -> None:
    config = AdamW()
    adamw = optax.adamw(RATE, config.beta1, config.beta2, config.eps, weight_decay=ADAM_DECAY, mask=decay_mask(lm))
    expected = by_path(train(adamw, NUM_STEPS)[-1][0])
    others = {path for path, label in by_path(muon_labels(lm)).items() if label == "adamw"}
    assert others == {path for path in trained if not path.endswith(tuple(AS_MATRIX))}
    assert {"embedding/table", "head", "gate/kernel", "core/block/layers/attention/query/bias"} < others
    assert "core/block/layers/feed_forward/router/balance_bias" in others
    assert {"value_embedding/block", "read_out/kernel"} < others
    for path in others:
        np.testing.assert_allclose(trained[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
