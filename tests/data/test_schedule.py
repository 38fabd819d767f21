from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looplm.data.schedule import MAX_PERIOD, Schedule, turns, whole_shares

WEIGHTS = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


@settings(max_examples=80, deadline=None)
@given(weights=WEIGHTS, count=st.integers(1, 700), cut=st.integers(0, 700))
def test_every_prefix_holds_the_proportions_to_one_example(weights: list[int], count: int, cut: int) -> None:
    schedule = Schedule({0: weights}, [None] * len(weights))
    sources, numbers = schedule.locate(0, count)
    read = [0] * len(weights)
    for n, (source, number) in enumerate(zip(sources.tolist(), numbers.tolist(), strict=True), start=1):
        assert number == read[source]
        read[source] += 1
        for weight, so_far in zip(weights, read, strict=True):
            assert abs(so_far - Fraction(weight * n, sum(weights))) < 1
    assert schedule.counts(count) == read
    # Sought equals replayed.
    cut = min(cut, count)
    for found, whole in zip(schedule.locate(cut, count - cut), (sources, numbers), strict=True):
        np.testing.assert_array_equal(found, whole[cut:])


@settings(max_examples=80, deadline=None)
@given(
    stages=st.lists(st.tuples(st.integers(1, 150), WEIGHTS), min_size=1, max_size=4),
    limits=st.lists(st.none() | st.integers(1, 60), min_size=6, max_size=6),
    cut=st.integers(0, 300),
)
def test_stages_and_limits(stages: list, limits: list[int | None], cut: int) -> None:
    """Against a reading one by one: in a stage, those that are left keep their proportions from when one ran dry."""
    starts = np.cumsum([0, *(length for length, _ in stages[:-1])]).tolist()
    table = {start: (weights + [0] * 6)[:6] for start, (_, weights) in zip(starts, stages, strict=True)}
    schedule = Schedule(table, limits)
    total = min(sum(length for length, _ in stages), schedule.end if schedule.end is not None else 10**9)
    sources, numbers = schedule.locate(0, total)
    read, since, base, before = [0] * 6, 0, [0] * 6, None
    for n, source in enumerate(sources.tolist()):
        weights = table[max(start for start in table if start <= n)]
        dry = [limit is not None and count >= limit for limit, count in zip(limits, read, strict=True)]
        left = [0 if is_dry else weight for weight, is_dry in zip(weights, dry, strict=True)]
        if n in table or left != before:
            since, base, before = n, list(read), left
        assert numbers[n] == read[source]
        read[source] += 1
        for i, weight in enumerate(left):
            assert abs(read[i] - base[i] - Fraction(weight * (n + 1 - since), sum(left))) < 1
    assert schedule.counts(total) == read
    assert all(limit is None or count <= limit for count, limit in zip(read, limits, strict=True))
    cut = min(cut, total)
    np.testing.assert_array_equal(schedule.locate(cut, total - cut)[0], sources[cut:])
    if schedule.end is not None:
        with pytest.raises(IndexError):
            schedule.locate(schedule.end - 1, 2)


def test_a_source_that_runs_dry_leaves_its_share_to_the_others() -> None:
    schedule = Schedule({0: [1, 1, 2]}, [3, None, None])
    sources, _ = schedule.locate(0, 112)
    assert np.bincount(sources).tolist() == [3, 36, 73]
    assert schedule.end is None
    assert Schedule({0: [1, 1]}, [3, 5]).end == 8


def test_far_ahead_and_huge_periods() -> None:
    schedule = Schedule({0: [0.7, 0.2, 0.1], 10**15: [1, 0, 3]}, [None] * 3)
    assert schedule.counts(10**15) == [7 * 10**14, 2 * 10**14, 10**14]
    sources, numbers = schedule.locate(10**15 + 4 * 10**9, 4)
    assert sorted(sources.tolist()) == [0, 2, 2, 2]
    assert numbers[sources == 0].item() == 7 * 10**14 + 10**9


def test_weights_are_exact_as_they_are_written() -> None:
    assert whole_shares([0.7, 0.2, 0.1]) == (7, 2, 1)
    assert whole_shares([3, 3]) == (1, 1)
    assert whole_shares([1 / 3, 2 / 3, 10**-6])[2] == 1
    shares = whole_shares([123_456_789_012, 987_654_321, 5])
    assert abs(sum(shares) - MAX_PERIOD) <= 1
    assert shares[2] == 1


def test_turns_are_part_of_the_format() -> None:
    # A checkpoint continues on the same data in any later version.
    assert turns((3, 1, 2)).source.tolist() == [0, 2, 0, 1, 0, 2]
    assert turns((5, 3)).source.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
