import numpy as np
import pytest

from looplm.data.synthetic.p_hop import PHop, p_hop_labels
from looplm.data.window import IGNORED
from looplm.errors import UserError


def answer(letters: list[int], place: int, hops: int) -> int:
    """Hop by hop, looking through all letters before the place."""
    if place and letters[place - 1] == letters[place]:
        return IGNORED
    for _ in range(hops):
        earlier = [j for j in range(place) if letters[j] == letters[place]]
        if not earlier:
            return IGNORED
        assert earlier[-1] + 1 < place, "a hop goes back"
        place = earlier[-1] + 1
    return letters[place]


@pytest.mark.parametrize(("hops", "length", "alphabet"), [(1, 9, 3), (2, 40, 4), (4, 64, 4), (7, 90, 5)])
def test_labels_are_those_of_a_search(hops: int, length: int, alphabet: int) -> None:
    batch = PHop(hops, length, alphabet).batch(20, seed=3, step=5)
    expected = [[answer(row, i, hops) for i in range(length)] for row in batch["tokens"].tolist()]
    np.testing.assert_array_equal(batch["labels"], expected)
    assert set(np.unique(batch["labels"])) == {IGNORED, *range(alphabet)}


def test_labels_of_a_sequence_done_by_hand() -> None:
    #                                               c  a  b  c  d  a  b  b
    tokens_BS = np.array([[2, 0, 1, 2, 3, 0, 1, 1]])
    no = IGNORED
    np.testing.assert_array_equal(p_hop_labels(tokens_BS, 1), [[no, no, no, 0, no, 1, 2, no]])
    np.testing.assert_array_equal(p_hop_labels(tokens_BS, 2), [[no, no, no, no, no, no, 0, no]])


def test_most_positions_have_an_answer_and_all_late_ones_but_repeats() -> None:
    batch = PHop(4, 64).batch(500, seed=0, step=0)
    late = batch["labels"][:, 48:]
    repeats = batch["tokens"][:, 48:] == batch["tokens"][:, 47:-1]
    assert (batch["labels"] != IGNORED).mean() > 0.5
    assert ((late == IGNORED) == repeats).mean() > 0.99


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    task = PHop(2, 32)
    first, again = (task.batch(4, seed=1, step=2) for _ in range(2))
    for name, value in first.items():
        assert value.shape == (4, 32)
        assert value.dtype == np.int32
        np.testing.assert_array_equal(value, again[name])
    for seed, step in ((1, 3), (2, 2), (2, 1)):
        assert (task.batch(4, seed=seed, step=step)["tokens"] != first["tokens"]).any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(hops=0, length=64), "hops=0 asks for nothing; use at least 1"),
        (dict(hops=1, length=64, alphabet=2), "alphabet=2 .* use at least 3"),
        (dict(hops=8, length=32), "length=32 is too short: .* use at least 64"),
    ],
)
def test_a_size_without_a_task_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PHop(**sizes)
