"""Whose turn it is: which source every example of a mixture is from, and how many were before, by arithmetic.

Among the first n examples of a stage there are fewer than one more or less than weight x n of every source, for every
n: the earliest deadline first, where the m-th example of a source with weight w is due between m / w and (m + 1) / w
(Baruah, Cohen, Plaxton, Varvel, "Proportionate progress", 1996). Weights are whole shares of a period, so the turns of
a period are a table and everything else is a division: any example is found at once, and the state is its number.

A stage ends where other weights begin, or where a source has been read as often as it may; what it had then goes to the
others, in proportion. Deliberately absent: which example of a source is read (`index`), and reading.
"""

import heapq
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

MAX_PERIOD = 1 << 16
"""Shares in all. Weights that need more, such as token counts, are rounded to shares of it."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns of one period. Made by `turns`."""

    shares: tuple[int, ...]
    """Turns of every source."""
    source: np.ndarray
    """Whose turn it is, (period,)."""
    rank: np.ndarray
    """How many turns that source had before in the period, (period,)."""
    places: tuple[np.ndarray, ...]
    """The turns of every source, ascending."""

    @property
    def period(self) -> int:
        return len(self.source)

    def counts(self, number: int) -> list[int]:
        """How many of the first `number` examples are from every source."""
        periods, rest = divmod(number, self.period)
        pairs = zip(self.shares, self.places, strict=True)
        return [periods * share + int(np.searchsorted(places, rest)) for share, places in pairs]

    def place(self, source: int, count: int) -> int:
        """The number of the example that is the count-th (from 0) of a source."""
        periods, rest = divmod(count, self.shares[source])
        return periods * self.period + int(self.places[source][rest])


@lru_cache
def turns(shares: tuple[int, ...]) -> Turns:
    """Order the turns of a period; every share is at least 1."""
    period = sum(shares)
    # (when it may begin, deadline, source, rank); then (deadline, source, rank) of those that may.
    waiting = [(0, _deadline(0, share, period), source, 0) for source, share in enumerate(shares)]
    ready: list[tuple[int, int, int]] = []
    heapq.heapify(waiting)
    order, ranks = np.empty(period, np.int64), np.empty(period, np.int64)
    for turn in range(period):
        while waiting and waiting[0][0] <= turn:
            heapq.heappush(ready, heapq.heappop(waiting)[1:])
        _, source, rank = heapq.heappop(ready)
        order[turn], ranks[turn] = source, rank
        if (following := rank + 1) < (share := shares[source]):
            begin = following * period // share
            heapq.heappush(waiting, (begin, _deadline(following, share, period), source, following))
    return Turns(shares, order, ranks, tuple(np.flatnonzero(order == source) for source in range(len(shares))))


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Turn positive weights into whole shares: exactly, as they are written, if a period of MAX_PERIOD can hold them.

    Otherwise rounded to shares of about MAX_PERIOD, each at least 1.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    fractions = [weight / total for weight in exact]
    period = lcm(*(fraction.denominator for fraction in fractions))
    if period > MAX_PERIOD:
        return tuple(max(1, round(fraction * MAX_PERIOD)) for fraction in fractions)
    return tuple(int(fraction * period) for fraction in fractions)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Examples from `start` on."""

    start: int
    sources: tuple[int, ...]
    """Those that have turns."""
    turns: Turns
    read: tuple[int, ...]
    """How many examples of every source, of all, came before."""


class Schedule:
    """The turns of sources over a whole run, however long."""

    def __init__(self, weights: Mapping[int, Sequence[float]], limits: Sequence[int | None]) -> None:
        """Make a schedule.

        Args:
            weights: of every source, by the first example that they hold for; one of them 0.
            limits: the most examples that are read of every source; None for no limit.
        """
        self._limits = tuple(limits)
        self.end: int | None = None
        """The number of examples, if sources run dry and leave nothing to read."""
        self._stages: list[_Stage] = []
        starts = sorted(weights)
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            self._add_stages(start, stop, weights[start])
            if self.end is not None:
                break
        self._starts = [stage.start for stage in self._stages]

    def __repr__(self) -> str:
        parts = ", ".join(f"{stage.start}: {stage.sources} x {stage.turns.shares}" for stage in self._stages)
        return f"Schedule({parts}{'' if self.end is None else f', end={self.end}'})"

    def locate(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of examples first .. first + count - 1, and how many were read of it before: two (count,).

        Raises IndexError where nothing is left to read.
        """
        if self.end is not None and first + count > self.end:
            raise IndexError(f"examples {first}..{first + count - 1} of {self.end}")
        sources, numbers = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            index = bisect_right(self._starts, first + done) - 1
            stage = self._stages[index]
            stop = self._starts[index + 1] if index + 1 < len(self._starts) else first + count
            here = slice(done, min(count, stop - first))
            local = np.arange(first + here.start - stage.start, first + here.stop - stage.start)
            periods, turn = np.divmod(local, stage.turns.period)
            source = stage.turns.source[turn]
            sources[here] = np.array(stage.sources)[source]
            numbers[here] = periods * np.array(stage.turns.shares)[source] + stage.turns.rank[turn]
            numbers[here] += np.array(stage.read, np.int64)[sources[here]]
            done = here.stop
        return sources, numbers

    def stage(self, number: int) -> int:
        """Return the number, from 0, of the stage that an example belongs to."""
        return bisect_right(self._starts, number) - 1

    def counts(self, number: int) -> list[int]:
        """How many of the first `number` examples are from every source."""
        return self._counts(self._stages[self.stage(number)], number)

    def _counts(self, stage: _Stage, number: int) -> list[int]:
        counts = list(stage.read)
        for source, count in zip(stage.sources, stage.turns.counts(number - stage.start), strict=True):
            counts[source] += count
        return counts

    def _add_stages(self, start: int, stop: int | None, weights: Sequence[float]) -> None:
        """Add what is read from `start` on: a stage, and another after every source that runs dry before `stop`."""
        read = self._counts(self._stages[-1], start) if self._stages else [0] * len(weights)
        while stop is None or start < stop:
            left = [None if limit is None else limit - count for limit, count in zip(self._limits, read, strict=True)]
            sources = tuple(i for i, weight in enumerate(weights) if weight > 0 and left[i] != 0)
            if not sources:
                self.end = start
                return
            stage = _Stage(start, sources, turns(whole_shares([weights[i] for i in sources])), tuple(read))
            self._stages.append(stage)
            lasts = [stage.turns.place(n, left[i] - 1) for n, i in enumerate(sources) if left[i] is not None]  # type: ignore[operator]
            if not lasts:
                return
            start += min(lasts) + 1
            read = self._counts(stage, start)


def _deadline(rank: int, share: int, period: int) -> int:
    return -((rank + 1) * -period // share)
