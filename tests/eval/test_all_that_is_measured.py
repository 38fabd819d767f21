"""`looplm eval` with exits and KV policies: shown, kept beside the sweep, and read by who writes text."""

import shutil
from pathlib import Path

import pytest

from looplm.metrics.exit_sweep import ExitSweep
from looplm.metrics.kv_loss import KVLosses
from looplm.metrics.sweep import read_sweeps


@pytest.mark.slow
def test_exits_and_policies_are_shown_and_kept(finished_run: Path, tmp_path: Path, command) -> None:
    workdir = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(workdir / "eval", ignore_errors=True)
    code, shown, told = command("eval", workdir, "--exit", "gate", "--exit", "argmax:2", "--kv", "last")
    assert code == 0, told
    (sweep,) = read_sweeps(workdir / "eval")
    assert sweep.calibrated is not None
    assert len(sweep.calibrated.loss) == 3
    exits = ExitSweep.read(workdir / "eval" / "exits-3.json")
    assert exits is not None
    assert [rule.name for rule in exits.rules] == ["gate", "argmax:2"]
    assert exits.loss == pytest.approx(sweep.loss)
    assert exits.num_tokens == sweep.num_tokens
    policies = KVLosses.read(workdir / "eval" / "kv-3.json")
    assert policies is not None
    assert [(one.policy, one.exit) for one in policies.policies] == [("last", None), ("last", "argmax:2")]
    assert policies.policies[0].share == pytest.approx(1 / 3)
    for text in ("calibrated", "oracle", "agree", "argmax:2"):
        assert text in shown

    dear = [one.model_copy(update={"change": 0.3}) for one in policies.policies]
    policies.model_copy(update={"policies": dear}).save(workdir / "eval", "kv")
    asked = ("generate", workdir, "--prompt", "def", "--max-tokens", "2", "--kv", "last")
    code, _, told = command(*asked)
    assert (code, told.count("\n")) == (2, 1)
    assert told.startswith("looplm: kv=last costs this checkpoint 0.300 nats per token")
    assert command(*asked, "--allow-lossy-kv")[0] == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--exit", "gate:3"], "exit rule 'gate:3': the value '3' of gate is not in (0, 1]"),
        (["--kv", "none"], "KV policy 'none' is not known"),
        (["--first-states", "3"], "--first-states compares drawn first states"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_work(
    options, reason, finished_run, command, monkeypatch
) -> None:
    monkeypatch.setattr("looplm.eval.command.depth_sweep", None)
    code, _, told = command("eval", finished_run, *options)
    assert (code, told.count("\n")) == (2, 1)
    assert reason in told
