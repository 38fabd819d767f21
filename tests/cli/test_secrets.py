"""A secret in the config and one in the environment: in no output, and in no file of the run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.config.schema import Run

IN_CONFIG, IN_ENVIRONMENT = "canary-in-config", "canary-in-environment"


def test_a_canary_is_in_no_output(
    command: Callable[..., tuple[int, str, str]],
    tiny_run: Callable[..., Run],
    tiny_data: Path,
    config_file: Callable[[Run], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", IN_ENVIRONMENT)
    # A folder whose name is a URL with a password, and one below whose name holds what the environment calls a token.
    data = tmp_path / f"gs:/key:{IN_CONFIG}@bucket" / f"data-{IN_ENVIRONMENT}"
    shutil.copytree(tiny_data, data)
    workdir = tmp_path / "runs" / "run"
    changes = {"eval.every_steps": 2, "log.tensorboard": True, "num_steps": 3}
    given = ("--set", f"data.train={data}/train", "--set", f"data.validation={data}/validation")
    train = ("train", config_file(tiny_run(**changes)), "--workdir", workdir, *given)
    validation = data / "validation"
    said = [
        command(*train),
        command(*train),  # the same config is the same run
        command(*train, "--set", "seed=5"),
        command(*train, "--set", f"data.api_token={IN_CONFIG}"),
        command(*train, "--set", f"data.train=s3://key:{IN_CONFIG}@host/data"),
        command("eval", workdir, "--data", validation),
        command("report", workdir),
        command("generate", workdir, "--prompt", "x", "--max-tokens", 1),
    ]
    assert [outcome[0] for outcome in said] == [0, 0, 2, 2, 2, 0, 0, 0], said
    text = "\n".join(outcome[1] + outcome[2] for outcome in said)
    assert "***@bucket" in text
    written = [path for path in workdir.rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl", "events.jsonl", "report.html"} <= {path.name for path in written}
    for canary in (IN_CONFIG, IN_ENVIRONMENT):
        assert canary not in text
        assert [path for path in written if canary.encode() in path.read_bytes()] == []
