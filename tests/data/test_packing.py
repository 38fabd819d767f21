import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looplm.data import packing
from looplm.data.dataset import TokenDataset
from looplm.data.packing import PackedWindows, best_fit, pack_documents
from looplm.errors import UserError


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """Best fit decreasing, its definition; the room that is left in every bin, sorted."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        enough = [room for room in rooms if room >= length]
        if enough:
            rooms.remove(min(enough))
        rooms.append((min(enough) if enough else capacity) - length)
    return sorted(rooms)


@settings(max_examples=150, deadline=None)
@given(capacity=st.integers(1, 50), lengths=st.lists(st.integers(1, 50), max_size=60))
def test_bins_are_those_of_the_definition(capacity: int, lengths: list[int]) -> None:
    lengths = [min(length, capacity) for length in lengths]
    bins = best_fit(np.array(lengths, np.int64), capacity)
    filled = np.bincount(bins, lengths) if lengths else np.zeros(0)
    assert sorted((capacity - filled).tolist()) == one_by_one(lengths, capacity)


def check_windows(dataset: TokenDataset, windows: PackedWindows, S: int) -> None:
    """Every token once, in pieces that are whole documents where those fit, each with its labels."""
    batch = windows.read(np.arange(len(windows)))
    offsets = dataset.document_offsets.astype(int).tolist()
    stream = dataset.tokens(0, dataset.num_tokens).tolist()
    wanted = []
    for start, stop in pairwise(offsets):
        for first in range(start, stop, S):
            piece = stream[first : min(first + S, stop)]
            follows = stream[first + 1 : min(first + S + 1, stop)]
            wanted.append((piece, follows + [-100] * (len(piece) - len(follows))))
    found = []
    for row in range(len(windows)):
        segments = batch["segments"][row]
        for number in range(1, segments.max() + 1):
            here = segments == number
            assert batch["positions"][row][here].tolist() == list(range(here.sum()))
            found.append((batch["tokens"][row][here].tolist(), batch["labels"][row][here].tolist()))
        padded = segments == 0
        assert not batch["tokens"][row][padded].any()
        assert not batch["positions"][row][padded].any()
        assert (batch["labels"][row][padded] == -100).all()
        assert (np.diff(segments[~padded]) >= 0).all()
        assert not padded[: (~padded).sum()].any()
    assert sorted(found) == sorted(wanted)
    assert windows.padding == pytest.approx((batch["segments"] == 0).mean())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), S=st.integers(1, 12), block=st.integers(1, 30))
def test_windows_hold_every_document(write_dataset, tmp_path_factory, lengths: list[int], S: int, block: int) -> None:
    dataset = write_dataset(lengths, shard_bytes=2 * 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK_DOCUMENTS", block)
        check_windows(dataset, PackedWindows(dataset, S, tmp_path_factory.mktemp("cache")), S)


def test_the_packing_is_kept_and_pickles(write_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset([5, 30, 9, 2])
    first = PackedWindows(dataset, 8, tmp_path)
    monkeypatch.setattr(packing, "pack_documents", None)
    again = pickle.loads(pickle.dumps(PackedWindows(dataset, 8, tmp_path)))
    ids = np.arange(len(first))
    for name, value in first.read(ids).items():
        np.testing.assert_array_equal(value, again.read(ids)[name])
    assert [path.name for path in (tmp_path / "packing").iterdir()] == [first.folder.name]


@pytest.mark.parametrize(("name", "itemsize"), [("lengths", 4), ("starts", 8), ("windows", 8)])
def test_a_damaged_packing_is_refused(write_dataset, tmp_path: Path, name: str, itemsize: int) -> None:
    dataset = write_dataset([5, 30, 9, 2])
    folder = PackedWindows(dataset, 8, tmp_path).folder
    data = (folder / f"{name}.bin").read_bytes()
    (folder / f"{name}.bin").write_bytes(data[:-itemsize])
    with pytest.raises(UserError, match="is damaged; remove that folder"):
        PackedWindows(dataset, 8, tmp_path)
    (folder / f"{name}.bin").unlink()
    with pytest.raises(UserError, match="is damaged"):
        PackedWindows(dataset, 8, tmp_path)


def test_a_cache_that_cannot_be_written(write_dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep the packing in .*; set data\.cache_dir"):
        PackedWindows(write_dataset([5]), 8, tmp_path / "file")


def test_labels_follow_the_loss_mask(write_dataset, tmp_path: Path) -> None:
    dataset = write_dataset([3, 4], masks=[[0, 0, 1], [1, 1, 0, 1]])
    stream = dataset.tokens(0, 7).tolist()
    batch = PackedWindows(dataset, 8, tmp_path).read(np.array([0]))
    no = -100
    np.testing.assert_array_equal(batch["labels"], [[no, stream[2], no, stream[4], no, stream[6], no, no]])


def test_little_is_padded(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1, 20_000).astype(np.int64) + 1
    windows = sum(len(block.windows) for block in pack_documents(np.concatenate([[0], np.cumsum(lengths)]), 1024))
    assert lengths.sum() / (windows * 1024) > 0.99
