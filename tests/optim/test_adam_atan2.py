"""Adam with atan2 against its formula, written out."""

import jax
import numpy as np

from looplm.config.schema import AdamATan2, Optim, Schedule
from looplm.optim.build import build_optimizer
from looplm.optim.groups import decay_mask


def test_it_follows_the_formula(lm, params, gradients, train, by_path) -> None:
    config = Optim(
        learning_rate=0.01, schedule=Schedule(decay="constant"), clip_norm=None,
        optimizer=AdamATan2(beta1=0.8, beta2=0.9, weight_decay=0.5),
    )  # fmt: skip
    trained = by_path(train(build_optimizer(config, lm, 10), 3)[-1][0])
    decays = by_path(decay_mask(lm))
    for path, first in by_path(params).items():
        expected, mean, square = np.float64(first), 0.0, 0.0
        for step, gradient in enumerate((by_path(tree)[path] for tree in gradients[:3]), start=1):
            mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
            direction = np.arctan2(mean / (1 - 0.8**step), np.sqrt(square / (1 - 0.9**step)))
            expected = expected * (1 - 0.01 * 0.5 * decays[path]) - 0.01 * direction
        np.testing.assert_allclose(trained[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_the_size_of_gradients_is_nothing_to_it(lm, params, gradients, by_path) -> None:
    config = Optim(learning_rate=0.01, clip_norm=None, optimizer=AdamATan2(weight_decay=0.0))
    optimizer = build_optimizer(config, lm, 10)

    @jax.jit
    def updates(scale):
        scaled = jax.tree.map(lambda leaf: leaf * scale, gradients[0])
        return optimizer.update(scaled, optimizer.init(params), params)[0]

    moved = [updates(np.float32(scale)) for scale in (1.0, 1e-12)]
    for path, expected in by_path(moved[0]).items():
        np.testing.assert_allclose(by_path(moved[1])[path], expected, rtol=1e-5, err_msg=path)
