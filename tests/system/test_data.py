"""What a run reads: from an address as from a disk, from mixtures whose weights change when it goes on, from tasks."""

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from looplm.config.schema import Addition, Run, Source
from looplm.errors import UserError
from looplm.metrics.sinks import read_metrics
from looplm.sharding.mesh import build_mesh
from looplm.train import trainer
from looplm.train.batch import BatchLayout

SECRET = "a-secret-that-nobody-may-see"
NUM_STEPS = 6
LOSS = "train/loss"


class Stopped(Exception):
    """The run is stopped from outside."""


@pytest.fixture(scope="module")
def train(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, float]]]:
    """Trains on one device and returns the lines of metrics.jsonl; all runs share one compiled step."""
    shared: list[trainer.Compiled] = []
    original = trainer.Trainer.__dict__["compiled"].func

    def compiled(self: trainer.Trainer) -> trainer.Compiled:
        if not shared:
            shared.append(original(self))
        return shared[0]

    def train(data: object, workdir: Path | None = None, stop_at: int | None = None, **changes: object):
        workdir = workdir or tmp_path_factory.mktemp("run") / "run"
        run = tiny_run(**{"num_steps": NUM_STEPS, "checkpoint.every_steps": 3, "data.train": data} | changes)
        place = BatchLayout.place
        calls = iter(range(1000))

        def stopping(*arguments: object) -> object:
            if next(calls) == stop_at:
                raise Stopped
            return place(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "build_mesh", lambda config: build_mesh(config, jax.devices()[:1]))
            patch.setattr(trainer.Trainer, "compiled", property(compiled))
            patch.setattr(BatchLayout, "place", stopping)
            console = Console(file=io.StringIO(), width=200)
            try:
                trainer.Trainer(run, workdir, console).train()
            except Stopped:
                assert stop_at is not None
        train.console = console.file.getvalue()
        return read_metrics(workdir / "metrics.jsonl")

    return train


def losses(rows: list[dict[str, float]]) -> list[float]:
    return [row[LOSS] for row in rows]


@pytest.fixture(scope="module")
def address(tiny_data: Path) -> Iterator[str]:
    """The training data in a bucket of a local server."""
    server = pytest.importorskip("moto.server")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="tokens")
        for path in (tiny_data / "train").iterdir():
            client.put_object(Bucket="tokens", Key=f"tiny/train/{path.name}", Body=path.read_bytes())
        yield f"s3://tokens/tiny/train?endpoint=http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="module")
def local_losses(train, tiny_data, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    cache = tmp_path_factory.mktemp("cache")
    return losses(train(str(tiny_data / "train"), **{"data.cache_dir": str(cache), "data.packing": "best_fit"}))


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_an_address_trains_like_the_local_copy(train, local_losses, address, tmp_path: Path, cache_gb: float) -> None:
    changes = {"data.cache_dir": str(tmp_path / "cache"), "data.cache_gb": cache_gb, "data.packing": "best_fit"}
    assert losses(train(address, tmp_path / "run", **changes)) == local_losses
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    assert SECRET not in train.console


@pytest.fixture
def sources(tiny_data: Path) -> Callable[..., list[dict]]:
    def make(**weights: object) -> list[dict]:
        data = {"text": str(tiny_data / "train"), "other": str(tiny_data / "validation"), "sums": Addition(digits=2)}
        return [Source(name=name, data=data[name], weight=weight).model_dump() for name, weight in weights.items()]

    return make


def test_weights_may_change_when_a_run_goes_on(train, sources, tmp_path: Path) -> None:
    changes = {"data.validation": None}
    whole = train(sources(text={0: 0.75, 3: 0.5}, sums={0: 0.25, 3: 0.25}, other={3: 0.25}), **changes)
    before = train(sources(text=0.75, sums=0.25), tmp_path, stop_at=4, **changes)
    assert losses(before) == losses(whole)[:3]
    for wrong in (sources(text=0.5, sums=0.25), sources(text=0.75), sources(text=0.75, sums=0.25, other={2: 1.0})):
        with pytest.raises(UserError, match=r"has read 3 batches, and data\.train would have other examples"):
            train(wrong, tmp_path, **changes)
    after = train(sources(other={3: 0.25}, sums=0.25, text={0: 0.75, 3: 0.5}), tmp_path, **changes)
    assert losses(after) == losses(whole)
    # 8 rows of 16 tokens a step.
    for row in after:
        step = row["step"]
        assert row["data/tokens_text"] == 16 * (6 * min(step, 3) + 4 * max(step - 3, 0))
        assert row.get("data/tokens_other", 0) == 16 * 2 * max(step - 3, 0)
    assert {name for name in after[-1] if name.startswith("data/")} == {
        "data/wait_s", "data/tokens_text", "data/tokens_sums", "data/tokens_other",
        "data/epochs_text", "data/epochs_sums", "data/epochs_other",
    }  # fmt: skip


def test_padding_is_told(train) -> None:
    # One sum of 11 tokens in a window of 16.
    rows = train({"kind": "addition", "digits": 3}, **{"data.validation": None})
    assert [row["data/padding"] for row in rows] == [5 / 16] * NUM_STEPS
    assert "note: 31.2% of the positions of train are padding" in train.console


def test_a_task_is_trained_and_swept_by_depth(train, tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    from looplm.eval.command import evaluate

    held_out = {"kind": "addition", "digits": 2, "seed": 1, "num_examples": 31}
    train({"kind": "addition", "digits": 2}, tmp_path / "run", **{"data.validation": held_out})
    sweep = evaluate(tmp_path / "run")
    assert (sweep.data, sweep.num_documents, sweep.num_tokens) == ("addition", 31, 3 * 31)
    assert sweep.bits_per_byte == [None] * 3
    assert all(np.isfinite(sweep.loss))

    # A task has examples without end: 2 batches of 8 windows with 2 of them each are scored, and that is said.
    console = Console(file=io.StringIO())
    sweep = evaluate(tmp_path / "run", data='{"kind": "addition", "digits": 2, "seed": 2}', console=console)
    assert (sweep.data, sweep.num_documents, sweep.num_tokens) == ("addition", 32, 3 * 32)
    assert "of the 1000000 examples of addition, 2 batches of 8 windows are scored" in console.file.getvalue()
    with pytest.raises(UserError, match=r"--data \{kind is not valid JSON"):
        evaluate(tmp_path / "run", data="{kind")
    with pytest.raises(UserError, match=r"data\.validation='sum' is not known; use 'p_hop'"):
        evaluate(tmp_path / "run", data='{"kind": "sum"}')
