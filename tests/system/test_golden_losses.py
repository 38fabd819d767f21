"""A refactor changes no number: the first steps of the shipped small configs have the losses that are recorded.

After a change that is meant, on the oldest supported interpreter, all of them:
LOOPLM_UPDATE_GOLDEN=1 python -m pytest -m 'slow or not slow' tests/system/test_golden_losses.py

The data is a computed task, so that the numbers depend on nothing but the code. Sums of float32 in another order, as on
another number of cores or with another jax, are within the tolerance; another formula is not.
"""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from looplm.config.load import load_config, override
from looplm.config.schema import PHop
from looplm.train.trainer import Trainer
from tests.config.shipped import NAMES

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
SMALL = [name for name in NAMES if name.endswith((":tiny", "_cpu"))]
QUICK = "ouro:tiny"
CASES = [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in SMALL]
SHORT = {
    "num_steps": 4,
    "optim.schedule.warmup_steps": 1,
    "data.train": PHop(hops=2, length=32),
    "data.validation": None,
    "data.sequence_length": 32,
    "data.batch_tokens": 8 * 32,
    "data.accumulation_steps": 1,
    "log.tensorboard": False,
}
MEASURED = ("train/loss", "train/grad_norm")


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_that_are_recorded(name: str, tmp_path: Path) -> None:
    run = override(load_config(name), SHORT)
    Trainer(run, tmp_path / "run", Console(file=io.StringIO())).train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {key: [row[key] for row in rows if key in row] for key in MEASURED}
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LOOPLM_UPDATE_GOLDEN"):
        recorded[name] = {key: [float(f"{value:.6g}") for value in values] for key, values in found.items()}
        GOLDEN.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")
    assert len(found["train/loss"]) == SHORT["num_steps"]
    for key in MEASURED:
        assert found[key] == pytest.approx(recorded[name][key], rel=3e-4), key


def test_all_small_configs_are_recorded() -> None:
    assert list(json.loads(GOLDEN.read_text())) == sorted(SMALL)
