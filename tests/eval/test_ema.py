"""The averaged weights of a run, wherever weights are read."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

import looplm
from looplm.checkpoint.writer import CheckpointWriter, Facts
from looplm.config.load import to_json
from looplm.config.schema import Checkpoint, Run
from looplm.errors import UserError
from looplm.eval.command import evaluate
from looplm.metrics.sinks import read_metrics
from looplm.metrics.sweep import read_sweeps
from looplm.model.functional import Params
from looplm.optim.ema import ema_params
from looplm.train.trainer import Trainer


class Trained(NamedTuple):
    workdir: Path
    averaged: Params
    sweeps: dict[str, dict]
    """What training itself stored, by file name; `looplm eval` scores more and overwrites it."""


@pytest.fixture(scope="module")
def trained(tiny_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    workdir = tmp_path_factory.mktemp("ema") / "run"
    run = tiny_run(**{"optim.ema_decay": 0.5, "optim.optimizer": "muon", "eval.every_steps": 3})
    state = Trainer(run, workdir, Console(file=io.StringIO())).train()
    sweeps = {path.name: json.loads(path.read_text()) for path in (workdir / "eval").iterdir()}
    return Trained(workdir, jax.device_get(ema_params(state.opt_state)), sweeps)


def test_loaded_weights_are_the_average(trained) -> None:
    loaded = looplm.load(trained.workdir, ema=True)
    assert loaded.step == 3
    jax.tree.map(np.testing.assert_array_equal, loaded.params, trained.averaged)
    assert not np.array_equal(loaded.params["head"], looplm.load(trained.workdir).params["head"])


def test_evaluation_equals_that_of_a_checkpoint_with_these_weights(trained, tmp_path: Path) -> None:
    workdir = trained.workdir
    (tmp_path / "config.json").write_text(to_json(looplm.load(workdir).run))
    (tmp_path / "tokenizer.model").write_bytes((workdir / "tokenizer.model").read_bytes())
    (tmp_path / "checkpoints").mkdir()
    trees = {"params": trained.averaged, "opt_state": {"unread": np.zeros(1)}}
    checkpoints = CheckpointWriter(tmp_path / "checkpoints", Checkpoint(), Facts("", 0, ""), trees)
    checkpoints.save(3, trees)
    checkpoints.close()
    averaged, plain = evaluate(workdir, ema=True), evaluate(tmp_path)
    assert averaged.ema
    assert averaged.model_copy(update={"ema": False}) == plain
    assert averaged.loss != evaluate(workdir).loss


def test_training_scores_both_and_the_report_gets_the_weights_themselves(trained: Trained) -> None:
    (row,) = [row for row in read_metrics(trained.workdir / "metrics.jsonl") if "eval/loss_depth_3" in row]
    assert trained.sweeps.keys() == {"depth_sweep-3.json", "depth_sweep-3-ema.json"}
    for ema, prefix in ((False, "eval/"), (True, "eval/ema_")):
        sweep = trained.sweeps[f"depth_sweep-3{'-ema' * ema}.json"]
        assert sweep["ema"] == ema
        assert sweep["loss"] == [row[f"{prefix}loss_depth_{r}"] for r in (1, 2, 3)]
        assert sweep["bits_per_byte"] == [row[f"{prefix}bpb_depth_{r}"] for r in (1, 2, 3)]
    assert [sweep.ema for sweep in read_sweeps(trained.workdir / "eval")] == [False]


@pytest.mark.parametrize("words", ["eval", "generate --prompt=x"])
def test_the_commands_take_it_and_say_so(command, trained: Trained, words: str) -> None:
    name, *options = words.split()
    code, stdout, stderr = command(name, trained.workdir, "--ema", *options)
    assert code == 0
    assert "step 3, averaged weights" in stdout + stderr


def test_an_export_writes_it(command, trained: Trained, tmp_path: Path) -> None:
    code, stdout, stderr = command("convert", "export", trained.workdir, tmp_path / "hf", "--ema")
    assert code == 0, stderr
    assert "step 3, averaged weights" in stdout
    found = looplm.load(tmp_path / "hf").params
    assert found.keys() >= {"core", "embedding", "head"}
    jax.tree.map(np.testing.assert_array_equal, found, {name: trained.averaged[name] for name in found})
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "their moving average, decay 0.5 a step" in card
    assert "Held-out loss" not in card


@pytest.mark.slow
def test_what_does_not_learn_is_exported_as_it_is(command, tiny_run, tmp_path: Path) -> None:
    changes = {"optim.ema_decay": 0.5, "optim.frozen": ["embedding"], "num_steps": 1}
    state = Trainer(tiny_run(**changes), tmp_path / "run", Console(file=io.StringIO())).train()
    assert command("convert", "export", tmp_path / "run", tmp_path / "hf", "--ema").code == 0
    found = looplm.load(tmp_path / "hf").params
    averaged = jax.device_get(ema_params(state.opt_state))
    np.testing.assert_array_equal(found["embedding"]["table"], state.params["embedding"]["table"])
    np.testing.assert_array_equal(found["head"], averaged["head"])


def test_a_run_without_an_average_is_refused(command, finished_run: Path, tmp_path: Path) -> None:
    shown = command("convert", "export", finished_run, tmp_path / "hf", "--ema")
    assert shown.code == 2
    assert "keeps no moving average of its weights" in shown.stderr
    assert not (tmp_path / "hf").exists()
    for refused in (lambda: looplm.load(finished_run, ema=True), lambda: evaluate(finished_run, ema=True)):
        with pytest.raises(UserError, match=r"keeps no moving average of its weights \(optim.ema_decay=None\)"):
            refused()


def test_an_official_checkpoint_has_none() -> None:
    with pytest.raises(UserError, match="ema=True needs a run of looplm"):
        looplm.load(Path(__file__).parents[1] / "golden" / "ouro_a", ema=True)
