"""Learning rates at the steps that matter."""

import jax
import numpy as np
import pytest

from looplm.config.schema import ExitGate, Model, Optim, Schedule
from looplm.model.functional import FunctionalLM
from looplm.optim.build import decay_mask
from looplm.optim.schedule import build_schedule


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_warm_up_peak_and_end(decay, warmup):
    config = Optim(learning_rate=2.0, schedule=Schedule(warmup_steps=warmup, decay=decay, final_fraction=0.25))
    rate = build_schedule(config, 110)
    assert rate(warmup) == pytest.approx(2.0)
    assert rate(110) == pytest.approx(2.0 if decay == "constant" else 0.5)
    middle = warmup + (110 - warmup) / 2
    assert rate(middle) == pytest.approx({"constant": 2.0, "linear": 1.25, "cosine": 1.25}[decay])
    if warmup == 10:
        np.testing.assert_allclose([rate(step) for step in range(10)], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)


def test_norms_and_biases_do_not_decay():
    config = Model(vocab_size=9, dim=8, num_heads=2, hidden_dim=8, block_layers=1, exit_gate=ExitGate())
    mask = jax.tree.leaves_with_path(decay_mask(FunctionalLM(config)))
    kept = {jax.tree_util.keystr(path).rsplit("['")[-1].rstrip("']") for path, decays in mask if not decays}
    assert kept == {"scale", "bias"}
