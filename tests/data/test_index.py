import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looplm.data.index import permute, shuffled


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 4095, 4096, 4097, 65537, 100_003])
def test_a_permutation_has_every_number_once(size: int) -> None:
    np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, seed=3)), np.arange(size))


@settings(deadline=None)
@given(size=st.integers(1, 10**12), seed=st.integers(0, 2**64), start=st.integers(0, 10**12))
def test_huge_permutations_stay_inside_and_apart(size: int, seed: int, start: int) -> None:
    index = np.unique((start + np.arange(200)) % size)
    values = permute(index, size, seed)
    assert values.dtype == np.int64
    assert ((values >= 0) & (values < size)).all()
    assert len(np.unique(values)) == len(index)


def test_values_never_change() -> None:
    # A checkpoint continues on the same data in any later version: these numbers are part of the format.
    assert permute(np.arange(8), 1000, seed=0).tolist() == [213, 280, 689, 349, 706, 167, 824, 814]
    assert permute(np.array([0, 10**12 - 1]), 10**12, seed=7, epoch=3).tolist() == [343172534278, 104090966538]


def test_seeds_and_epochs_differ() -> None:
    orders = [permute(np.arange(1000), 1000, seed, epoch) for seed in range(4) for epoch in range(4)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            # Two random orders agree in one place on average.
            assert (order == other).sum() < 12


def test_it_mixes_well() -> None:
    size = 10_000
    order = permute(np.arange(size), size, seed=0)
    # Every tenth of the epoch holds every tenth of the data alike: 100 expected, standard deviation about 9.
    table = np.histogram2d(np.arange(size), order, bins=10)[0]
    assert abs(table - 100).max() < 50 - 1
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_shape_and_range() -> None:
    assert permute(np.arange(6).reshape(2, 3), 6, seed=0).shape == (2, 3)
    assert permute(4, 6, seed=0).shape == ()
    for bad in (-1, 6):
        with pytest.raises(IndexError):
            permute(bad, 6, seed=0)


@pytest.mark.parametrize(("windows", "batch"), [(10, 1), (10, 4), (7, 7), (3, 8), (1, 5), (100, 9)])
def test_every_epoch_has_every_window_once(windows: int, batch: int) -> None:
    steps = [np.arange(step * batch, (step + 1) * batch) for step in range(4 * windows)]
    stream = np.concatenate([shuffled(numbers, windows, 5) for numbers in steps])
    epochs = stream[: len(stream) // windows * windows].reshape(-1, windows)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(windows), epochs.shape))
    for number, epoch in enumerate(epochs[:5]):
        np.testing.assert_array_equal(epoch, permute(np.arange(windows), windows, 5, number))
    if windows >= 10:
        assert (epochs[0] != epochs[1]).any()


def test_far_steps_and_large_datasets() -> None:
    ids = shuffled(4096 * 10**14 + np.arange(4096), 10**12 + 39, 1)
    assert ids.shape == (4096,)
    assert len(np.unique(ids)) == 4096
