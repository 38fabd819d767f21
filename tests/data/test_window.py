import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looplm.data.dataset import TokenDataset
from looplm.data.window import AllWindows, SplitWindows, read_windows
from looplm.errors import UserError


def by_hand(stream: list[int], lengths: list[int], window: int, length: int) -> dict[str, list[int]]:
    """The definition, token by token."""
    document_of = [number for number, count in enumerate(lengths) for _ in range(count)]
    offset_of = [place for count in lengths for place in range(count)]
    out: dict[str, list[int]] = {key: [] for key in ("tokens", "labels", "segments", "positions", "documents")}
    first = window * length
    for t in range(first, first + length):
        real = t < len(stream)
        scored = t + 1 < len(stream) and document_of[t + 1] == document_of[t]
        out["tokens"].append(stream[t] if real else 0)
        out["labels"].append(stream[t + 1] if scored else -100)
        out["segments"].append(document_of[t] - document_of[first] + 1 if real else 0)
        out["positions"].append(min(offset_of[t], t - first) if real else 0)
        out["documents"].append(document_of[t] if real else -1)
    return out


def check(dataset: TokenDataset, lengths: list[int], length: int, ids: list[int]) -> None:
    stream = dataset.tokens(0, dataset.num_tokens).tolist()
    got = read_windows(dataset, np.array(ids), length, with_documents=True)
    want = [by_hand(stream, lengths, i, length) for i in ids]
    for key, array in got.items():
        assert array.dtype == np.int32
        assert array.shape == (len(ids), length)
        np.testing.assert_array_equal(array, [row[key] for row in want], err_msg=key)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    length=st.integers(1, 20),
    shard_tokens=st.sampled_from([3, 8, 1000]),
)
def test_windows_are_their_definition(write_dataset, lengths: list[int], length: int, shard_tokens: int) -> None:
    dataset = write_dataset(lengths, shard_bytes=2 * shard_tokens)
    count = len(AllWindows(dataset, length))
    check(dataset, lengths, length, [*range(count + 2), 0])


def test_every_token_is_scored_once(dataset: TokenDataset) -> None:
    length = 37
    count = len(AllWindows(dataset, length))
    got = AllWindows(dataset, length).read(np.arange(count))
    real = got["segments"] > 0
    np.testing.assert_array_equal(got["tokens"][real], dataset.tokens(0, dataset.num_tokens))
    # All but the first token of every document.
    kept = np.ones(dataset.num_tokens, bool)
    kept[dataset.document_offsets[:-1].astype(int)] = False
    scored = got["labels"] != -100
    np.testing.assert_array_equal(got["labels"][scored], dataset.tokens(0, dataset.num_tokens)[kept])
    per_document = np.bincount(got["documents"][scored], minlength=dataset.num_documents)
    np.testing.assert_array_equal(per_document, np.diff(dataset.document_offsets.astype(int)) - 1)


@pytest.mark.parametrize(("tokens", "complete", "every"), [(11, 1, 2), (20, 1, 2), (21, 2, 3)])
def test_number_of_windows(write_dataset, tokens: int, complete: int, every: int) -> None:
    dataset = write_dataset([tokens])
    assert len(SplitWindows(dataset, 10)) == complete
    assert len(AllWindows(dataset, 10)) == every


def test_a_short_dataset_has_no_complete_window(write_dataset) -> None:
    with pytest.raises(UserError, match=r"has 16 tokens, but .*=16 needs 17; use at most 15"):
        SplitWindows(write_dataset([16]), 16)


def test_labels_follow_the_loss_mask(write_dataset) -> None:
    dataset = write_dataset([4, 3], masks=[[0, 0, 1, 1], [1, 0, 1]])
    stream = dataset.tokens(0, 7).tolist()
    labels = read_windows(dataset, np.array([0, 1]), 4)["labels"]
    no = -100
    np.testing.assert_array_equal(labels, [[no, stream[2], stream[3], no], [no, stream[6], no, no]])


def test_complete_windows_have_every_label(write_dataset) -> None:
    dataset = write_dataset([21])
    assert (read_windows(dataset, np.arange(2), 10)["labels"] != -100).all()


@pytest.mark.parametrize("place", [12, 20])
def test_a_token_out_of_range_is_named(write_dataset, place: int) -> None:
    dataset = write_dataset([30])
    stream = np.fromfile(dataset.path / "tokens-00000.bin", "<u2")
    stream[place] = 60_000
    stream.tofile(dataset.path / "tokens-00000.bin")
    with pytest.raises(UserError, match=rf"dataset .* token 60000 in window 1,.* vocabulary of {dataset.vocab_size}"):
        read_windows(TokenDataset.open(dataset.path), np.array([0, 1])[1:], 10)
    read_windows(TokenDataset.open(dataset.path), np.array([0]), 10)


def test_no_window(dataset: TokenDataset) -> None:
    assert read_windows(dataset, np.zeros(0, int), 8)["tokens"].shape == (0, 8)
