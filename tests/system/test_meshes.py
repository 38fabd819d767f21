"""Training does not depend on the mesh, nor on how a batch is cut into micro-batches."""

from collections.abc import Callable

import numpy as np
import pytest

from looplm.config.schema import Run

MODEL = {
    "num_steps": 4,
    "checkpoint.every_steps": 4,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "model.norm_placement": "sandwich",
    "model.norm_at_loop_end": True,
    "model.injection": "concat",
    "loop.depth": {"kind": "uniform", "max_loops": 3},
}
"""Parameters of every kind, and steps of different depths."""


@pytest.fixture(scope="module")
def on_one_device(train_on, tiny_run: Callable[..., Run]):
    return train_on(tiny_run(**MODEL), 1)


def test_there_is_something_to_compare(on_one_device) -> None:
    losses = on_one_device.column("train/loss")
    assert len(losses) == MODEL["num_steps"]
    assert losses[-1] < losses[0]
    assert len(set(on_one_device.column("loop/num_loops"))) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh.fsdp": 8},
        {"mesh.data": 4, "mesh.fsdp": 2},
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
        {"mesh.fsdp": 4, "mesh.tensor": 2, "data.accumulation_steps": 2},
    ],
    ids=["8x1", "4x2", "2x2x2", "4x2-accumulated"],
)
def test_losses_and_params_are_those_of_one_device(
    on_one_device, train_on, tiny_run: Callable[..., Run], changes: dict[str, int]
) -> None:
    trained = train_on(tiny_run(**MODEL, **changes), 8)
    # Adam hides a gradient of a wrong size; its norm does not.
    for name in ("train/loss", "train/objective", "train/grad_norm", "train/tokens", "gate/expected_depth"):
        np.testing.assert_allclose(trained.column(name), on_one_device.column(name), rtol=1e-5, err_msg=name)
    assert trained.params.keys() == on_one_device.params.keys()
    for path, expected in on_one_device.params.items():
        np.testing.assert_allclose(trained.params[path], expected, atol=2e-5, err_msg=path)
