"""What goes bad in a run, judged by its recorded rows alone (`metrics.jsonl`, see `metrics.sinks`).

Every judgement takes one row after the other and says what is bad once the run is bad in its sense. It remembers a few
numbers and no rows, so that a resumed run can show it all earlier rows again. The limits are measured on runs that
learn and on runs that do not: docs/decisions.md.
"""

import math
import re
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Protocol

Row = Mapping[str, float]

AT_ONCE, LASTING = 20, 400
"""Rows, of which most have to be bad. What good runs never do is told at once. While they know no more than how often
each token comes, their tokens are alike, too, and so their experts idle: that has to last, after the warm-up."""
ONE_LOOP = 0.99
"""Share of the exit distribution."""
ALIKE = 0.97
"""Mean cosine between the states of different tokens."""
GROWN, LARGE = 100.0, 300.0
"""The state's norm over its first, and in itself: it begins small, and good runs grow it thirtyfold."""
ENOUGH_CHOICES = 16.0
"""Of an expert in a step, on average; with fewer, one that is chosen may be missed by chance."""
STANDS_AFTER = 400
"""Rows. Then twice as many, and so on: a loss that has not moved for half of a run's life has stopped."""
MOVED = 0.01
"""Share of the loss."""
KNOWS_LITTLE = 0.5
"""Loss over that of guessing. Below, a loss that stands may be all that there is to learn."""
HIGH_RATE = 0.1
"""Share of the peak of the learning rate, below which nothing is expected to move."""
COSINE, NORM = "loop/token_correlation", "loop/state_norm"
EXIT = re.compile(r"gate/exit_loop_(\d+)")


class Judgement(Protocol):
    """One way to go bad."""

    about: str
    """Its name."""

    def look(self, row: Row) -> str | None:
        """Take the next row; return what is bad, in every row while it is."""


class Above:
    """Whether most of a column's last rows are above a limit: no single batch decides."""

    def __init__(self, limit: float, *, rows: int, warmup: int = 0):
        """warmup: rows with a value that are passed over first."""
        self.limit, self.rows, self.warmup = limit, rows, warmup
        self.values: deque[float] = deque(maxlen=rows)
        self.above = 0

    def add(self, value: float) -> float | None:
        """Takes a row's value, NaN where it has none; returns the median of the last rows if they are above."""
        if math.isnan(value):
            return None
        if self.warmup:
            self.warmup -= 1
            return None
        if len(self.values) == self.rows:
            self.above -= self.values[0] > self.limit
        self.values.append(value)
        self.above += value > self.limit
        return median(self.values) if 2 * self.above > self.rows else None


class ExitsOnOneLoop:
    """The exit distribution sits on one loop; of training that weighs loops by it, not of a gate trained alone."""

    about = "exits"

    def __init__(self) -> None:
        self.share = Above(ONE_LOOP, rows=AT_ONCE)

    def look(self, row: Row) -> str | None:
        share_of = {int(match[1]): value for name, value in row.items() if (match := EXIT.fullmatch(name))}
        if "gate/entropy" not in row or len(share_of) < 2:
            return None
        loop = max(share_of, key=lambda loop: share_of[loop])
        if (share := self.share.add(share_of[loop])) is not None:
            return f"loop {loop} has {share:.1%} of the exit distribution, so no other loop is trained"
        return None


class TokensAlike:
    """The loops make different tokens the same."""

    about = "tokens"

    def __init__(self, *, warmup: int) -> None:
        """warmup: rows that are passed over."""
        self.cosine = Above(ALIKE, rows=LASTING, warmup=warmup)

    def look(self, row: Row) -> str | None:
        if (cosine := self.cosine.add(row.get(COSINE, math.nan))) is not None:
            return f"the loops make all tokens alike ({COSINE} {cosine:.3f})"
        return None


class StateGrows:
    """The state grows by orders of magnitude."""

    about = "state"

    def __init__(self) -> None:
        self.first = math.nan
        self.norm = Above(math.nan, rows=AT_ONCE)

    def look(self, row: Row) -> str | None:
        now = row.get(NORM, math.nan)
        if math.isnan(self.first):
            self.first, self.norm = now, Above(max(LARGE, GROWN * now), rows=AT_ONCE)
        if (norm := self.norm.add(now)) is not None:
            return f"the state has grown from {self.first:.3g} to {norm:.3g} ({NORM})"
        return None


class DeadExperts:
    """Some experts get no tokens any more."""

    def __init__(self, branch: str, *, warmup: int) -> None:
        """branch: one of `metrics.routers.BRANCHES`. warmup: rows that are passed over."""
        self.about, self.column = f"{branch} experts", f"{branch}/dead"
        self.dead = Above(0, rows=LASTING, warmup=warmup)

    def look(self, row: Row) -> str | None:
        if (dead := self.dead.add(row.get(self.column, math.nan))) is not None:
            return f"{dead:.0f} experts get no token in any loop of a step ({self.column})"
        return None


class LossStands:
    """The loss does not come down, though little is learnt and the learning rate is high.

    Compares the third with the last quarter of all rows so far: a loss that falls as a power of the step falls between
    them however long the run is.
    """

    about = "loss"

    def __init__(self, *, peak_rate: float, vocab_size: int) -> None:
        self.peak_rate, self.guessing = peak_rate, math.log(vocab_size)
        self.until, self.seen = STANDS_AFTER, 0
        self.third, self.last = 0.0, 0.0

    def look(self, row: Row) -> str | None:
        loss = row.get("train/loss", math.nan)
        if not math.isfinite(loss) or row["optim/learning_rate"] < HIGH_RATE * self.peak_rate:
            return None
        self.seen += 1
        quarter = self.until // 4
        if self.seen > 3 * quarter:
            self.last += loss / quarter
        elif self.seen > 2 * quarter:
            self.third += loss / quarter
        if self.seen < self.until:
            return None
        third, last = self.third, self.last
        self.until, self.third, self.last = 2 * self.until, 0.0, 0.0
        if last < (1 - MOVED) * third or last < KNOWS_LITTLE * self.guessing:
            return None
        return f"the loss has stood at {last:.3f} for {2 * quarter} steps, after {third:.3f} before"
