import io
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from looplm.errors import UserError
from looplm.metrics.sinks import ConsoleSink, JsonlSink, Sink, TensorBoardSink, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, *steps: int, resume_step: int = 0, loss: float = 1.0) -> None:
    sink = JsonlSink(path, resume_step=resume_step)
    for step in steps:
        sink.write(step, {"train/loss": loss})
    sink.close()


class TestJsonl:
    def test_step_comes_first_and_numpy_scalars_are_taken(self, path: Path) -> None:
        sink = JsonlSink(path, resume_step=0)
        sink.write(np.int64(7), {"train/loss": np.float32(0.5), "train/tokens": np.int32(2**30), "loop/num_loops": 4})
        sink.close()
        assert path.read_text() == '{"step": 7, "train/loss": 0.5, "train/tokens": 1073741824, "loop/num_loops": 4}\n'

    def test_every_line_is_there_before_close(self, path: Path) -> None:
        sink = JsonlSink(path, resume_step=0)
        sink.write(1, {"train/loss": 2.0})
        assert read_metrics(path) == [{"step": 1, "train/loss": 2.0}]
        sink.close()
        sink.close()

    def test_non_finite_values_are_valid_json_and_come_back(self, path: Path) -> None:
        sink = JsonlSink(path, resume_step=0)
        sink.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan")})
        sink.close()
        raw = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert raw == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": "NaN"}
        (row,) = read_metrics(path)
        assert math.isnan(row["a"])
        assert math.isnan(row["d"])
        assert (row["b"], row["c"]) == (math.inf, -math.inf)

    def test_resume_drops_the_steps_that_run_again(self, path: Path) -> None:
        write(path, 1, 2, 3, 4)
        write(path, 3, 4, 5, resume_step=2, loss=9.0)
        assert [(row["step"], row["train/loss"]) for row in read_metrics(path)] == [
            (1, 1.0),
            (2, 1.0),
            (3, 9.0),
            (4, 9.0),
            (5, 9.0),
        ]
        assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]

    @pytest.mark.parametrize("tail", [b'{"step": 3, "train/lo', b"\x00\x00\x00", b'{"step": 3, "a": "\xff', b"[3]"])
    def test_a_broken_last_line_is_left_out_and_dropped_on_resume(self, path: Path, tail: bytes) -> None:
        write(path, 1, 2)
        path.write_bytes(path.read_bytes() + tail)
        assert [row["step"] for row in read_metrics(path)] == [1, 2]
        write(path, 3, resume_step=2)
        assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
        assert len(path.read_bytes().splitlines()) == 3

    def test_a_last_line_that_lacks_only_its_end_is_kept(self, path: Path) -> None:
        write(path, 1, 2)
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
        write(path, 3, resume_step=2)
        assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]

    @pytest.mark.parametrize("line", ['{"step": 2, ', "", '{"train/loss": 1}', '{"step": 2, "a": "high"}', "[1]"])
    def test_a_broken_line_elsewhere_names_file_and_line(self, path: Path, line: str) -> None:
        path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"metrics\.jsonl line 2 .*delete that line"):
            read_metrics(path)
        with pytest.raises(UserError, match="line 2"):
            JsonlSink(path, resume_step=3)
        assert path.read_bytes() == before

    def test_a_missing_file_says_what_writes_it(self, path: Path) -> None:
        with pytest.raises(UserError, match=r"does not exist; `looplm train`"):
            read_metrics(path)

    def test_a_killed_process_loses_no_written_line(self, path: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path; from looplm.metrics.sinks import JsonlSink\n"
            "sink = JsonlSink(Path(sys.argv[1]), resume_step=0)\n"
            "for step in range(1, 51): sink.write(step, {'train/loss': 1.0})\n"
            "print('written', flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            os.kill(process.pid, signal.SIGKILL)
        assert [row["step"] for row in read_metrics(path)] == list(range(1, 51))


def events(folder: Path) -> list[Event]:
    """Reads the record framing back: length (8 bytes), its checksum (4), content, its checksum (4)."""
    found = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def test_tensorboard_events_hold_every_value(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, resume_step=0)
    sink.write(1, {"train/loss": 3.5, "loop/num_loops": 4})
    sink.write(2, {"train/loss": math.nan})
    sink.close()
    sink.close()
    values = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert values[:2] == [(1, "train/loss", 3.5), (1, "loop/num_loops", 4.0)]
    assert values[2][:2] == (2, "train/loss")
    assert math.isnan(values[2][2])


def test_tensorboard_hides_the_steps_after_the_resumed_one(tmp_path: Path) -> None:
    TensorBoardSink(tmp_path, resume_step=20).close()
    assert [e.step for e in events(tmp_path) if e.HasField("session_log")] == [21]


def test_a_quick_restart_does_not_overwrite_tensorboard_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        sink = TensorBoardSink(tmp_path, resume_step=0)
        sink.write(pid, {"train/loss": 1.0})
        sink.close()
    assert {e.step for e in events(tmp_path) if e.summary.value} == {11, 12}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


TRAINING = {
    "train/loss": 3.41214,
    "train/grad_norm": 0.8171,
    "optim/learning_rate": 3e-4,
    "loop/num_loops": 4,
    "perf/tokens_per_s": 12_345.6,
    "ckpt/blocked_s": 0.1,
}


def test_plain_console_lines(clock: list[float]) -> None:
    out = io.StringIO()
    sink = ConsoleSink(Console(file=out, width=40), num_steps=2000, start_step=116, every_steps=10)
    for step in range(117, 141):
        sink.write(step, TRAINING)
        clock[0] += 0.1
    sink.write(140, {"eval/loss_depth_4": 3.4, "eval/loss_depth_1": 3.61239, "eval/bpb_depth_1": 2.0, "eval/x": 1.0})
    sink.write(140, {"ckpt/blocked_s": 2.0})
    sink.write(2000, {"train/loss": math.nan, "perf/tokens_per_s": math.nan})
    sink.close()
    full = "loss 3.4121  grad_norm 0.82  lr 3.0e-04  loops 4  12.3k tokens/s"
    assert out.getvalue().splitlines() == [
        f"step 117/2000  {full}",
        f"step 120/2000  {full}  eta 3m08s",
        f"step 130/2000  {full}  eta 3m07s",
        f"step 140/2000  {full}  eta 3m06s",
        "step 140/2000  held-out loss by depth  1: 3.6124  4: 3.4000",
        "step 2000/2000  loss nan  nan tokens/s",
    ]


def test_time_left_in_hours(clock: list[float]) -> None:
    out = io.StringIO()
    sink = ConsoleSink(Console(file=out), num_steps=1000, start_step=0, every_steps=1)
    for step in (1, 2):
        sink.write(step, {"train/loss": 1.0})
        clock[0] += 10.0
    assert out.getvalue().splitlines()[-1] == "step 2/1000  loss 1.0000  eta 2h46m"


def test_a_terminal_gets_one_bar_and_the_evaluations() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_interactive=True, width=100)
    sink = ConsoleSink(console, num_steps=50, start_step=10, every_steps=1)
    for step in range(11, 51):
        sink.write(step, TRAINING)
    sink.write(50, {"eval/loss_depth_1": 3.5})
    sink.close()
    text = out.getvalue()
    assert "50/50" in text
    assert "3.4121" in text
    assert "12.3k tokens/s" in text
    assert "held-out loss by depth  1: 3.5000" in text
    assert "grad_norm" not in text
    assert text.count("\n") < 15  # a line a step would be 40


def test_every_sink_is_a_sink(tmp_path: Path) -> None:
    sinks: list[Sink] = [
        JsonlSink(tmp_path / "metrics.jsonl", resume_step=0),
        TensorBoardSink(tmp_path / "tensorboard", resume_step=0),
        ConsoleSink(Console(file=io.StringIO()), num_steps=1, start_step=0, every_steps=1),
    ]
    for sink in sinks:
        sink.write(1, {"train/loss": 1.0})
        sink.close()


@pytest.fixture
def disk(small_disk: Callable[[str], Path]) -> Path:
    """A folder on a disk of 256 KB."""
    return small_disk("256k")


def test_lines_wait_for_a_disk_that_is_full(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sinks: list[Sink] = [
        JsonlSink(disk / "metrics.jsonl", resume_step=0),
        TensorBoardSink(disk / "tensorboard", resume_step=0),
    ]
    (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free))
    for step in range(1, 3000):
        for sink in sinks:
            sink.write(step, {"train/loss": 1 / step})
    sinks[1].close()
    assert len(read_metrics(disk / "metrics.jsonl")) < 200
    (disk / "filling").unlink()
    sinks[0].close()
    assert [row["step"] for row in read_metrics(disk / "metrics.jsonl")] == list(range(1, 3000))
    first, second = capsys.readouterr().err.splitlines()
    assert {first, second} == {
        f"looplm: {disk}/metrics.jsonl cannot be written (No space left on device); its lines wait in memory until "
        "it can",
        f"looplm: {disk}/tensorboard cannot be written (No space left on device); some steps will be missing there",
    }
