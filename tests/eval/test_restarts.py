"""Several tries of every example: what is put together of tokens, and which try is believed."""

import numpy as np
import pytest

from looplm.config.schema import InputState, Model, NormalState
from looplm.errors import UserError
from looplm.eval.restarts import Tries, check_restarts, chosen, of_examples

BATCH = {
    "documents": np.array([[7, 7, 9, 9, -1], [3, 3, 3, 5, 5]]),
    "labels": np.array([[1, 2, -100, 4, -100], [1, 1, 1, -100, -100]]),
}


def test_tokens_are_put_together_by_example_and_those_without_a_label_do_not_count() -> None:
    first, second = [[1, 2, 0, 0, 9], [1, 1, 1, 5, 5]], [[1, 3, 0, 4, 9], [1, 1, 1, 6, 6]]
    moved = np.array([[[1, 3, 90, 5, 90], [1, 2, 6, 90, 90]], [[0, 0, 90, 1, 90], [2, 2, 2, 90, 90]]], float)
    tries = of_examples(BATCH, np.array([first, second]), moved)
    np.testing.assert_array_equal(tries.solved_GN, [[True, True], [True, False], [False, True]])  # 3, 7, 9
    np.testing.assert_array_equal(tries.moved_GN, [[3, 2], [2, 0], [5, 1]])
    assert tries.answer_GN[0, 0] == tries.answer_GN[0, 1]
    assert tries.answer_GN[1, 0] != tries.answer_GN[1, 1]


def test_the_try_that_moved_least_and_the_one_that_most_agree_with() -> None:
    tries = Tries(
        solved_GN=np.array([[False, True, True], [True, False, False], [False, False, True]]),
        moved_GN=np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]),
        answer_GN=np.array([[1, 2, 2], [5, 6, 6], [1, 2, 3]]),
    )
    assert chosen(tries, [1, 2, 3]) == {
        "tries": [1, 2, 3],
        "single": pytest.approx(4 / 9),
        "settled": [1 / 3, 2 / 3, 2 / 3],
        "vote": [1 / 3, 2 / 3, 1 / 3],
        "any_of_them": [1 / 3, 2 / 3, 1.0],
    }


@pytest.mark.parametrize(
    ("first", "number", "is_task", "message"),
    [
        (NormalState(), 1, True, "--restarts=1 must be at least 2"),
        (NormalState(), 2, False, "the data are texts"),
        (InputState(), 2, True, "all tries would be the same"),
    ],
)
def test_what_could_tell_nothing_is_refused(first, number: int, is_task: bool, message: str) -> None:
    model = Model(vocab_size=5, dim=8, num_heads=2, hidden_dim=8, block_layers=1, state_init=first)
    with pytest.raises(UserError, match=message):
        check_restarts(model, number, is_task=is_task)
