"""A start is quick because of what it leaves out; what it takes is in docs/benchmarks.md."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import looplm
from looplm.config.schema import Run
from looplm.train.trainer import Trainer

HEAVY = ("jax", "flax", "numpy", "pydantic", "orbax", "rich.progress")
LATER = (
    "scipy", "pandas", "torch", "transformers", "datasets", "matplotlib", "tensorboardX", "tokenizers", "safetensors",
    "looplm.checkpoint.hf_folder", "looplm.checkpoint.adapters", "looplm.convert", "looplm.report", "looplm.infer",
)  # fmt: skip
"""What a run from nothing has no use for."""


@pytest.mark.parametrize(
    ("module", "absent"), [("looplm.cli", HEAVY), ("looplm.train.trainer, looplm.compile.out_of_memory, grain", LATER)]
)
def test_what_is_not_needed_is_not_imported(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(looplm.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_garbage_is_collected_but_for_the_set_up(
    command, tiny_run: Callable[..., Run], config_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def train(trainer: Trainer) -> None:
        seen.append(gc.isenabled())
        trainer.when_set_up()
        seen.append(gc.isenabled())

    monkeypatch.setattr(Trainer, "train", train)
    assert command("train", config_file(tiny_run()), "--workdir", tmp_path / "run").code == 0
    assert seen == [False, True]
    assert command("train", config_file(tiny_run()), "--workdir", tmp_path / "run", "--set", "num_steps=0").code == 2
    assert gc.isenabled()
