"""A run whose core, halting rule, injection and objective are all defined outside of looplm."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import looplm
from looplm.config.schema import Run
from tests.own_parts import LeaveAfter, MeanCore, MeanCrossEntropy


@pytest.fixture(scope="module")
def own_run(tiny_run: Callable[..., Run]) -> Run:
    path = Path(__file__).parents[2] / "examples" / "own_injection.py"
    spec = importlib.util.spec_from_file_location("own_injection", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    parts = {
        "model.core": MeanCore(),
        "model.halting": LeaveAfter(loops=2),
        "model.injection": example.GatedInjection(),
        "objective": MeanCrossEntropy(scale=2.0),
    }
    return tiny_run(**parts, num_steps=2)


@pytest.mark.slow
def test_it_trains_alike_on_any_mesh_and_loads(own_run: Run, train_on, tmp_path: Path) -> None:
    one, eight = (train_on(own_run, devices, tmp_path / str(devices)) for devices in (1, 8))
    np.testing.assert_allclose(one.column("train/objective"), eight.column("train/objective"), rtol=1e-5)
    for path, leaf in one.params.items():
        np.testing.assert_allclose(leaf, eight.params[path], rtol=1e-3, atol=1e-5, err_msg=path)
    lm = looplm.load(tmp_path / "8")
    assert (lm.model, lm.objective) == (own_run.model, own_run.objective)
    assert lm.generate(["a"], max_tokens=3) == lm.generate(["a"], num_loops=2, max_tokens=3)
