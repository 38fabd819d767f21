"""A run directory as training and evaluation leave it, with made-up numbers."""

import functools
import json
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest

from looplm.config.load import override, to_json
from looplm.config.schema import Data, ExitGate, ExpectedCrossEntropy, Loop, Model, Optim, Run
from looplm.metrics.sinks import JsonlSink
from looplm.metrics.sweep import Sweep
from looplm.report import picture, write_report
from tests.reasoner import REASONER
from tests.report.parsed import Page

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
        "calibrated": {
            "temperature": [1.25, 1.1, 1.02, 1.0, 1.0, 1.0, 1.01, 1.02],
            "loss": [value - 0.02 / depth for depth, value in zip(depths, loss, strict=True)],
            "loss_low": [value - 0.05 for value in loss],
            "loss_high": [value + 0.03 for value in loss],
            "bits_per_byte": [value / 3.25 / math.log(2) for value in loss],
            "change_low": [value - loss[3] - 0.02 / depth - 0.02 for depth, value in zip(depths, loss, strict=True)],
            "change_high": [value - loss[3] - 0.02 / depth + 0.03 for depth, value in zip(depths, loss, strict=True)],
            "gain": {"from_depth": 1, "to_depth": 4, "nats": 0.531, "low": 0.51, "high": 0.55},
        },
        "solve": {
            "num_examples": 50,
            "depths": depths[:4],
            "at": [0.1, 0.4, 0.7, 0.66],
            "at_low": [0.03, 0.26, 0.55, 0.51],
            "at_high": [0.22, 0.55, 0.82, 0.79],
            "by": [0.1, 0.42, 0.74, 0.76],
            "by_low": [0.03, 0.28, 0.6, 0.62],
            "by_high": [0.22, 0.57, 0.85, 0.87],
            "lost": [0.0, 0.02, 0.04, 0.1],
            "needs": {"p50": 2, "p90": 3, "p99": None},
        },
        "sample": {
            "pieces": pieces,
            "exit_depth": [1 + len(piece) % 4 for piece in pieces],
            "loss": [None, *(0.5 * len(piece) for piece in pieces[1:])],
            "depths": depths,
            "loss_by_depth": [[round(0.6 * len(piece) / (1 + 0.1 * d), 4) for piece in pieces] for d in depths],
        },
        "loops": {
            "state_norm": [1.5 + 0.4 * depth for depth in depths],
            "residual_rel": [0.9 * math.exp(-0.55 * depth) for depth in depths],
            "update_cosine": [0.0, *(0.99 - 0.04 * depth for depth in depths[1:])],
            "token_correlation": [0.2 + 0.03 * depth for depth in depths],
            "exit_probability": [0.15, 0.2, 0.3, 0.35],
        },
        "generations": [
            {"loops": loops, "prompt": "def total(", "text": "items):\n    return sum(items)\n" * loops}
            for loops in (1, 2, 4)
        ],
    } | changes


def measured_of(step: int) -> dict[str, Any]:
    """What every file of an evaluation says."""
    return {"step": step, "data": "fixture/validation", "num_tokens": 40_960, "num_documents": 96}


def example_exits(step: int = 300, better_than_chance: float = 0.03) -> dict[str, Any]:
    loss = example_sweep()["loss"][:4]

    def point(threshold: float) -> dict[str, Any]:
        depth = 1 + 3 * threshold
        base = loss[int(depth) - 1] + (depth % 1) * (loss[min(3, int(depth))] - loss[int(depth) - 1])
        gain = better_than_chance * math.sin(math.pi * threshold)
        found = base + 0.01 - gain
        excess = found - loss[3]
        return {
            "rule": f"gate:{threshold:g}",
            "mean_depth": depth,
            "histogram": [0.25, 0.25, 0.25, 0.25],
            "depth_p50": round(depth),
            "depth_p90": min(4, round(depth) + 1),
            "depth_p99": 4,
            "loss": found,
            "excess": excess,
            "excess_low": excess - 0.004,
            "excess_high": excess + 0.004,
            "accuracy": 0.3 + 0.01 * depth,
            "disagreement": 0.2 / depth,
            "controls": {"fixed": base, "random": found + gain, "shuffled": found + 0.8 * gain, "oracle": base - 0.3},
            "gain": gain,
            "gain_low": gain - 0.005,
            "gain_high": gain + 0.005,
        }

    points = [point(threshold) for threshold in (1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)]
    safe = {"tolerance": 0.02, "confidence": 0.95, "rule": "gate:0.8", "mean_depth": 3.4, "excess_upper": 0.0185}
    return measured_of(step) | {
        "num_loops": 4,
        "full_loss": loss[3],
        "full_accuracy": 0.38,
        "loss": loss,
        "rules": [
            {"name": "gate", "points": points, "safe": [safe | {"disagreement_upper": 0.11}]},
            {
                "name": "latent",
                "points": [one | {"rule": one["rule"].replace("gate", "latent")} for one in points],
                "safe": [],
            },
        ],
        "oracle": [{"mean_depth": 1 + depth / 4, "loss": loss[3] - 0.2 - 0.02 * depth} for depth in range(13)],
    }


def example_kv(step: int = 300) -> dict[str, Any]:
    def policy(name: str, change: float, share: float, width: float = 0.002) -> dict[str, Any]:
        ends = {"change": change, "change_low": change - width, "change_high": change + width}
        rest = {"agreement": 1 - 4 * abs(change), "mean_depth": 4.0, "bytes_per_token": round(1024 * share)}
        return {"policy": name, "loss": 3.254 + change, "share": share, **ends, **rest}

    policies = [policy("each:int8", 0.0004, 0.5), policy("last", 0.0312, 0.25), policy("ring:2", 0.0109, 0.5)]
    return measured_of(step) | {"num_loops": 4, "loss": 3.254, "policies": policies}


def example_first_states(step: int = 300) -> dict[str, Any]:
    depths = [1, 2, 3, 4]
    return measured_of(step) | {
        "num_states": 4,
        "depths": depths,
        "state_distance": [0.8, 0.2, 0.05, 0.01],
        "divergence": [0.5, 0.03, 0.002, 0.0001],
        "agreement": [0.6, 0.9, 0.97, 0.995],
        "loss": [3.9, 3.5, 3.3, 3.25],
        "loss_spread": [0.05, 0.01, 0.002, 0.0004],
    }


def example_answers(step: int = 300) -> dict[str, Any]:
    """Two puzzles of 2 x 2 over three segments: 3 cells wrong of 3, then 1, then none; and one without a label."""
    grid = {"columns": 2, "given": [0, 2, 0, 0], "wanted": [1, -100, 3, 4], "segments": [1, 2, 3]}
    return measured_of(step) | {
        "segment_loops": 4,
        "halted": [0.0, 0.25, 0.8],
        "right": [None, 0.9, 0.85],
        "solved": [0.1, 0.3, 0.75],
        "grids": [
            grid | {"guesses": [[4, 2, 4, 3], [1, 2, 4, 4], [1, 2, 3, 4]]},
            grid | {"columns": 4, "guesses": [[1, 9, 3, 4]] * 3},
        ],
        "attempts": {"count": 2, "num_tasks": 40, "solved": 0.125},
    }


def example_restarts(step: int = 300) -> dict[str, Any]:
    shares = {"settled": [0.5, 0.6, 0.7], "vote": [0.5, 0.5, 0.65], "any_of_them": [0.5, 0.7, 0.9]}
    return measured_of(step) | {"depth": 16, "settling_loops": 12, "tries": [1, 2, 4], "single": 0.52} | shares


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


def write_evaluations(workdir: Path, step: int) -> None:
    """Writes what is measured of exits, caches and first states."""
    made = {
        "exits": example_exits, "kv": example_kv, "first_states": example_first_states, "restarts": example_restarts,
    }  # fmt: skip
    for kind, example in made.items():
        (workdir / "eval" / f"{kind}-{step}.json").write_text(json.dumps(example(step)))


def measured(step: int, run: Run) -> dict[str, float]:
    noise = 0.08 * math.sin(step * 12.9898) * math.cos(step * 78.233)
    loss = 3.2 + 3.1 * math.exp(-step / (run.num_steps / 5)) + noise
    metrics = {
        "train/loss": loss,
        "train/grad_norm": 0.6 + 2.0 * math.exp(-step / 30) + abs(noise),
        "optim/learning_rate": 1e-3 * min(1.0, step / 20) * (0.55 + 0.45 * math.cos(math.pi * step / run.num_steps)),
        "loop/num_loops": 4,
        "loop/residual_rel": 0.4 * math.exp(-step / 200),
        "loop/update_cosine": 0.9 - 0.2 * math.exp(-step / 60),
        **{f"gate/exit_loop_{loop}": 0.1 * loop for loop in range(1, 5)},
        "gate/expected_depth": 3.1 + 0.6 * math.exp(-step / 50),
        "perf/host_memory_gb": 1.5 + step / 1000,
        "goodput/fraction": 1 - 1 / (1 + step),
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


@pytest.fixture(scope="session")
def reasoner_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a run whose rows halt."""
    workdir = tmp_path_factory.mktemp("reasoner")
    run = override(example_run(12), {name: value for name, value in REASONER.items() if not name.startswith("data.")})
    write_run(workdir, run, example_sweep(12))
    sink = JsonlSink(workdir / "metrics.jsonl", resume_step=12)
    sink.write(12, {"train/exact": 0.5, "gate/right": 0.75, "carry/segments": 2.5, "carry/replaced": 0.4})
    sink.close()
    (workdir / "eval" / "answers-12.json").write_text(json.dumps(example_answers(12)))
    return Page(write_report(workdir))


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory, build_run: Callable[..., Path]) -> Page:
    """The report of a run of which everything was measured, with its pictures."""
    older = {"step": 6, "loss": [4.8 - 0.1 * depth for depth in range(8)]}
    workdir = build_run(tmp_path_factory.mktemp("runs") / "full-run", older, {"step": 12})
    write_evaluations(workdir, 12)
    return Page(write_report(workdir))


@pytest.fixture
def make_run(tmp_path: Path, build_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The same in a fresh folder. Pictures of the report are blank, since drawing takes most of its time."""
    monkeypatch.setattr(picture, "_render", lambda draw, alt, *_: f'<svg role="img" aria-label="{escape(alt)}"></svg>')
    return functools.partial(build_run, tmp_path / "run")
