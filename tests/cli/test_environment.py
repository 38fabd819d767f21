"""Variables that were set for other programs: the run is the same one, or one line says why it cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.config.schema import Run


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_device(tiny_run: Callable[..., Run]) -> Run:
    return tiny_run(
        **{"num_steps": 2, "optim.schedule.warmup_steps": 0, "data.validation": None, "eval.every_steps": 0}
    )


@pytest.fixture(scope="module")
def plain(one_device: Run, program, write_config, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("plain")
    assert program.run("train", write_config(folder, one_device), "--workdir", folder / "run").code == 0
    return losses(folder / "run")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {"JAX_ENABLE_X64": "1", "HOME": "/proc/nowhere", "TMPDIR": "/nowhere", "LC_ALL": "C"}
            | {"http_proxy": "http://127.0.0.1:9"},
            "note: JAX_ENABLE_X64=1 is set aside: a run computes in the types of its config",
        ),
        pytest.param(
            {"JAX_DISABLE_JIT": "true"},
            "note: JAX_DISABLE_JIT=true is set aside: training is one compiled program",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_run_is_the_same(
    variables: dict[str, str], told: str, one_device: Run, plain: list[float], program, config_file, tmp_path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, stderr = program.run("train", config_file(one_device), "--workdir", tmp_path / "run")
    assert (code, stderr.startswith(told)) == (0, True), stderr
    assert losses(tmp_path / "run") == plain


@pytest.mark.parametrize("platform", ["CPU", "gpu"])
def test_devices_that_are_not_there(
    platform: str, one_device: Run, program, config_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    code, _, stderr = program.run("train", config_file(one_device), "--workdir", tmp_path / "run")
    assert (code, stderr.count("\n")) == (2, 1), stderr
    assert stderr.startswith(f"looplm: JAX_PLATFORMS={platform}: Unable to initialize backend ")
    assert not (tmp_path / "run").exists()
