"""A run directory as training and evaluation leave it, with made-up numbers."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from looplm.config.load import to_json
from looplm.config.schema import Data, ExitGate, ExpectedCrossEntropy, Loop, Model, Optim, Run
from looplm.metrics.sinks import JsonlSink
from looplm.metrics.sweep import Sweep
from looplm.report import picture

SOURCE = "def total(items):\n    # add <them> up & return\n\treturn sum(i for i in items)\n"


def example_run(num_steps: int = 300, **data: Any) -> Run:
    return Run(
        num_steps=num_steps,
        model=Model(vocab_size=512, dim=64, num_heads=4, hidden_dim=128, block_layers=2, exit_gate=ExitGate()),
        loop=Loop(num_loops=4),
        objective=ExpectedCrossEntropy(),
        optim=Optim(learning_rate=1e-3),
        data=Data(**{"train": "data/train", "sequence_length": 64, "batch_tokens": 1024} | data),
    )


def example_sweep(step: int = 300, **changes: Any) -> dict[str, Any]:
    depths = list(range(1, 9))
    loss = [3.2 + 0.6 * math.exp(-0.8 * (depth - 1)) + 0.01 * max(0, depth - 5) ** 2 for depth in depths]
    pieces = [piece for word in SOURCE.split(" ") for piece in (word, " ")][:-1]
    return {
        "step": step,
        "data": "fixture/validation",
        "num_tokens": 40_960,
        "num_bytes": 131_072,
        "num_documents": 96,
        "depths": depths,
        "trained_depth": 4,
        "loss": loss,
        "loss_low": [value - 0.03 for value in loss],
        "loss_high": [value + 0.03 for value in loss],
        "change_low": [value - loss[3] - 0.03 for value in loss],
        "change_high": [value - loss[3] + 0.03 for value in loss],
        "bits_per_byte": [value / 3.2 / math.log(2) for value in loss],
        "accuracy": [0.30 + 0.02 * depth for depth in depths],
        "gain": {"from_depth": 1, "to_depth": 4, "nats": 0.546, "low": 0.52, "high": 0.57},
        "exit_histogram": [0.12, 0.21, 0.29, 0.38],
        "exit_threshold": 0.5,
        "expected_depth": 2.93,
        "exit_loss": 3.27,
        "xz_bits_per_byte": 2.1,
        "sample": {
            "pieces": pieces,
            "exit_depth": [1 + len(piece) % 4 for piece in pieces],
            "loss": [None, *(0.5 * len(piece) for piece in pieces[1:])],
        },
        "generations": [
            {"loops": loops, "prompt": "def total(", "text": "items):\n    return sum(items)\n" * loops}
            for loops in (1, 2, 4)
        ],
    } | changes


def write_run(workdir: Path, run: Run, *sweeps: dict[str, Any]) -> Path:
    """Writes config, metrics of every step, and the sweeps."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(run))
    sink = JsonlSink(workdir / "metrics.jsonl", resume_step=0)
    for step in range(1, run.num_steps + 1):
        sink.write(step, measured(step, run))
        if step % max(1, run.num_steps // 5) == 0:
            sink.write(step, {f"eval/loss_depth_{depth}": 3.3 + 3.2 * math.exp(-step / 60) for depth in (1, 4)})
    sink.close()
    (workdir / "eval").mkdir(exist_ok=True)
    for sweep in sweeps:
        (workdir / "eval" / f"depth_sweep-{sweep['step']}.json").write_text(json.dumps(sweep))
    return workdir


def measured(step: int, run: Run) -> dict[str, float]:
    noise = 0.08 * math.sin(step * 12.9898) * math.cos(step * 78.233)
    loss = 3.2 + 3.1 * math.exp(-step / (run.num_steps / 5)) + noise
    metrics = {
        "train/loss": loss,
        "train/grad_norm": 0.6 + 2.0 * math.exp(-step / 30) + abs(noise),
        "optim/learning_rate": 1e-3 * min(1.0, step / 20) * (0.55 + 0.45 * math.cos(math.pi * step / run.num_steps)),
        "loop/num_loops": 4,
        "loop/residual_rel": 0.4 * math.exp(-step / 200),
        "gate/expected_depth": 3.1 + 0.6 * math.exp(-step / 50),
        "perf/step_s": 0.081 + 0.01 * abs(noise),
        "perf/tokens_per_s": 1024 / (0.081 + 0.1 * abs(noise)),
        **{f"train/loss_loop_{loop}": loss + 0.35 / loop - 0.08 for loop in range(1, 5)},
    }
    return metrics | ({"perf/compile_s": 12.5} if step == 1 else {})


@pytest.fixture
def make_sweep() -> Callable[..., Sweep]:
    """Makes a sweep with some of its fields changed."""
    return lambda **changes: Sweep.model_validate(example_sweep(**changes))


@pytest.fixture(scope="session")
def build_run() -> Callable[..., Path]:
    """Makes a short run in a folder, with the given sweeps (as changes) and changes of the config's data section."""

    def build(workdir: Path, *sweeps: dict[str, Any], **data: Any) -> Path:
        return write_run(workdir, example_run(12, **data), *(example_sweep(**sweep) for sweep in sweeps))

    return build


@pytest.fixture
def make_run(tmp_path: Path, build_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The same in a fresh folder. Pictures of the report are blank, since drawing takes most of its time."""
    monkeypatch.setattr(picture, "_render", lambda *_: "data:image/png;base64,")
    return functools.partial(build_run, tmp_path / "run")
