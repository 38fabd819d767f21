"""Services that follow runs: they get every number, none leaves the machine, and their failures end no run.

The real W&B, MLflow and trackio are tried where they are installed.
"""

import json
import os
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from looplm.errors import UserError
from looplm.metrics.trackers import TRACKERS, Tolerant, Tracked, check_trackers, open_trackers


class Failing:
    """Takes two lines."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.closed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if len(self.taken) == 2:
            raise ConnectionError("no route\nto host")
        self.taken.append(step)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracked:
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    (workdir := tmp_path / "run").mkdir()
    return Tracked("project", "a1b2c3d4", workdir, {"seed": 0, "model.dim": 16, **{f"x.{i}": i for i in range(120)}})


def test_a_service_that_fails_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    service = Failing()
    sink = Tolerant("wandb", lambda: service)
    for step in range(1, 6):
        sink.write(step, {"train/loss": 1.0})
    sink.close()
    assert (service.taken, service.closed) == ([1, 2], False)
    assert capsys.readouterr().err == ("looplm: wandb fails (ConnectionError: no route); the run goes on without it\n")


def test_a_service_that_does_not_open_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def opens() -> Failing:
        raise RuntimeError("not logged in")

    sink = Tolerant("mlflow", opens)
    sink.write(1, {"train/loss": 1.0})
    sink.close()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_service_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else object())
    with pytest.raises(UserError, match=r"log\.trackers=trackio needs the package trackio: pip install 'looplm\[tra"):
        check_trackers(("wandb", "trackio"))
    check_trackers(("wandb", "mlflow"))
    assert set(TRACKERS) == {"wandb", "mlflow", "trackio"}


def send(name: str, tracked: Tracked, steps: range) -> None:
    """As one start of a run."""
    (sink,) = open_trackers([name], tracked)
    for step in steps:
        sink.write(step, {"train/loss": 1 / step, "eval/loss_depth_2": float("nan")})
    sink.close()


def records(content: bytes) -> Iterator[bytes]:
    """Of the log format of LevelDB: blocks of 32 KiB of parts with check sum, length and kind, after 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := -place % 2**15) and left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_writes_below_the_run(tracked: Tracked, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for steps in (range(1, 5), range(3, 7)):
        send("wandb", tracked, steps)
    files = sorted(tracked.workdir.glob("wandb/offline-run-*/run-a1b2c3d4.wandb"))
    assert len(files) >= 1  # one a start; within a second the second one takes the name of the first
    seen, settings = {}, {}
    for data in records(files[-1].read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if row:
            seen[json.loads(row["step"])] = json.loads(row["train/loss"])
        settings |= {item.key: item.value_json for item in record.run.config.update}
    assert seen == pytest.approx({step: 1 / step for step in range(3, 7)})
    assert settings["model.dim"] == "16"
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_mlflow_keeps_one_run_over_restarts(tracked: Tracked) -> None:
    mlflow = pytest.importorskip("mlflow")
    for steps in (range(1, 5), range(3, 7)):
        send("mlflow", tracked, steps)
    client = mlflow.MlflowClient(tracking_uri=(tracked.workdir / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("project").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {one.step: one.value for one in history} == pytest.approx({step: 1 / step for step in range(1, 7)})
    assert len(run.data.params) == 122
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")


@pytest.mark.slow
def test_trackio_keeps_one_run_over_restarts(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is read when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", os.environ.get("TRACKIO_DIR", str(tracked.workdir / "trackio")))
    pytest.importorskip("trackio")
    for steps in (range(1, 4), range(4, 7)):
        send("trackio", tracked, steps)
    assert capsys.readouterr().out == ""
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "project.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in rows} == {"run-a1b2c3d4"}
    losses = {step: json.loads(metrics)["train/loss"] for _, step, metrics in rows}
    assert losses == pytest.approx({step: 1 / step for step in range(1, 7)})
