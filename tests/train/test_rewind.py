"""The batch of a step after rewinds, against a list from which batches are taken out by hand."""

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from looplm.metrics.events import Events
from looplm.train.rewind import Batches

NUM_STEPS = 60


@pytest.mark.parametrize(
    "rewinds",
    [
        [(4, 6)],
        [(0, 1)],
        [(4, 6), (4, 5), (4, 9)],  # the same checkpoint again
        [(4, 6), (8, 10), (12, 13)],
        [(8, 10), (4, 12)],  # before an earlier one: its checkpoint was damaged
        [(8, 10), (4, 6), (4, 9)],
        [tuple(sorted(pair)) for pair in np.random.default_rng(0).integers((0, 10), (10, 20), (10, 2)).tolist()],
    ],
)
def test_what_was_passed_over_is_never_read_and_nothing_else_is_left_out(
    rewinds: list[tuple[int, int]], tmp_path: Path
) -> None:
    events = Events(tmp_path / "events.jsonl")
    batches, wanted = Batches(events), list(range(300))
    for after, last in rewinds:
        span = wanted[last - 1] - wanted[after] + 1
        del wanted[after:last]
        assert batches.pass_over(after, last) == span
        for found in (batches, Batches(events)):  # also in a later process
            assert [found.of(step) for step in range(1, NUM_STEPS)] == wanted[: NUM_STEPS - 1]
            assert found.num_rewinds == rewinds.index((after, last)) + 1 or rewinds.count((after, last)) > 1


def test_the_loader_is_asked_again_only_where_batches_are_left_out(tmp_path: Path) -> None:
    asked = []

    def loader(batch: int) -> Iterator[int]:
        asked.append(batch)
        return count(batch)

    batches = Batches(Events(tmp_path / "events.jsonl"))
    batches.pass_over(2, 4)
    assert list(islice(batches.read(loader, 1), 5)) == [0, 1, 4, 5, 6]
    assert asked == [0, 4]
