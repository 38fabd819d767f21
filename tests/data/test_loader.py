import pickle
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from looplm.data.dataset import TokenDataset
from looplm.data.index import shuffled
from looplm.data.loader import _StepSource, eval_batches, train_loader
from looplm.data.mixture import Mixture, Part
from looplm.data.window import AllWindows, SplitWindows, read_windows
from looplm.errors import UserError

S, B = 16, 8


def alone(dataset: TokenDataset, *, batch_size: int = B, seed: int = 1) -> Mixture:
    part = Part("train", SplitWindows(dataset, S), {0: 1.0}, seed)
    return Mixture([part], batch_size=batch_size, sequence_length=S)


def take(dataset: TokenDataset, count: int, *, batch_size: int = B, **options) -> list[dict[str, np.ndarray]]:
    return list(islice(train_loader(alone(dataset, batch_size=batch_size), **{"start_step": 0} | options), count))


def assert_equal(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_are_the_windows_of_the_index(dataset: TokenDataset) -> None:
    windows = SplitWindows(dataset, S)
    for step, batch in enumerate(take(dataset, 5)):
        assert set(batch) == {"tokens", "labels", "segments", "positions"}
        want = read_windows(dataset, shuffled(np.arange(step * B, step * B + B), len(windows), 1), S)
        for key, array in batch.items():
            assert (array.dtype, array.shape) == (np.int32, (B, S))
            np.testing.assert_array_equal(array, want[key])


@pytest.mark.parametrize("prefetch", [0, 1, 4, 9])
def test_seeking_equals_replay_for_any_prefetch(dataset: TokenDataset, prefetch: int) -> None:
    assert_equal(take(dataset, 12, prefetch=4)[7:], take(dataset, 5, start_step=7, prefetch=prefetch))


def test_it_does_not_end_with_the_epoch(write_dataset) -> None:
    dataset = write_dataset([3 * S + 1])
    batches = take(dataset, 6, batch_size=1, prefetch=2)
    firsts = [batch["tokens"][0, 0] for batch in batches]
    assert sorted(firsts[:3]) == sorted(firsts[3:]) == sorted(dataset.tokens(0, 3 * S)[::S].tolist())
    take(dataset, 2, batch_size=7, start_step=10**12)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_together_are_one_host(dataset: TokenDataset, num_hosts: int) -> None:
    parts = [take(dataset, 3, start_step=2, host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    joined = [{key: np.concatenate([p[key] for p in step]) for key in step[0]} for step in zip(*parts, strict=True)]
    assert_equal(joined, take(dataset, 3, start_step=2))
    windows, options = AllWindows(dataset, S), {"batch_size": B, "max_batches": 3}
    parts = [list(eval_batches(windows, host=host, num_hosts=num_hosts, **options)) for host in range(num_hosts)]
    joined = [{key: np.concatenate([p[key] for p in step]) for key in step[0]} for step in zip(*parts, strict=True)]
    assert_equal(joined, list(eval_batches(windows, **options)))


def test_the_source_pickles(dataset: TokenDataset) -> None:
    source = _StepSource(alone(dataset), slice(0, 4), 3)
    assert_equal([source[2]], [pickle.loads(pickle.dumps(source))[2]])
    assert "start_step=3" in repr(source)


def test_evaluation_reads_every_window_once_in_order(write_dataset) -> None:
    dataset = write_dataset([20, 31, 7])
    batches = list(eval_batches(AllWindows(dataset, 5), batch_size=8))
    assert [batch["tokens"].shape for batch in batches] == [(8, 5)] * 2
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    want = read_windows(dataset, np.arange(12), 5, with_documents=True)
    for key, padding in {"tokens": 0, "labels": -100, "segments": 0, "positions": 0, "documents": -1}.items():
        np.testing.assert_array_equal(joined[key][:12], want[key])
        assert (joined[key][12:] == padding).all()


@pytest.mark.parametrize("max_batches", [1, 2, 5])
def test_a_limited_evaluation_is_spread(dataset: TokenDataset, max_batches: int) -> None:
    windows = AllWindows(dataset, S)
    batches = list(eval_batches(windows, batch_size=B, max_batches=max_batches))
    assert len(batches) == max_batches
    read = max_batches * B
    want = windows.read(np.array([row * len(windows) // read for row in range(read)]))
    for key, array in want.items():
        np.testing.assert_array_equal(np.concatenate([batch[key] for batch in batches]), array)
    everything = list(eval_batches(windows, batch_size=B))
    assert_equal(everything, list(eval_batches(windows, batch_size=B, max_batches=10**6)))


def test_a_short_dataset_is_evaluated_all_the_same(write_dataset) -> None:
    (batch,) = eval_batches(AllWindows(write_dataset([S]), 100), batch_size=2)
    assert (batch["segments"] > 0).sum() == S


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_hosts": 3}, "batch_size=8 does not divide among 3 hosts"), ({"start_step": -1}, "start_step=-1")],
)
def test_bad_options(dataset: TokenDataset, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        take(dataset, 1, **options)


def test_bad_options_of_evaluation(dataset: TokenDataset) -> None:
    windows = AllWindows(dataset, S)
    with pytest.raises(UserError, match="does not divide among 3 hosts"):
        eval_batches(windows, batch_size=8, num_hosts=3)
    with pytest.raises(UserError, match=r"eval\.max_batches=0"):
        eval_batches(windows, batch_size=8, max_batches=0)


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_damaged_token_stops_the_loader(write_dataset, prefetch: int) -> None:
    dataset = write_dataset([100])
    stream = np.fromfile(dataset.path / "tokens-00000.bin", "<u2")
    stream[50] = 60_000
    stream.tofile(dataset.path / "tokens-00000.bin")
    with pytest.raises(UserError, match="token 60000"):
        take(TokenDataset.open(dataset.path), 10, batch_size=1, prefetch=prefetch)


def test_no_jax_before_a_loader_is_made() -> None:
    code = (
        "import importlib, pkgutil, sys, looplm.data as data\n"
        "names = [module.name for module in pkgutil.walk_packages(data.__path__, 'looplm.data.')]\n"
        "assert 'looplm.data.loader' in names and 'looplm.data.synthetic.maze' in names, names\n"
        "for name in names: importlib.import_module(name)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib', 'flax', 'grain')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
