"""Tables whose rows are measured one after the other, within a time: what fails or comes too late is a row that says
so, and every row is written as it comes."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

from looplm.errors import UserError


class Row(NamedTuple):
    """One measurement."""

    name: tuple[str, ...]
    """The first cells."""
    measure: Callable[[], Sequence[str]]
    """Gives the cells that follow; whatever it raises is written instead."""


class Table(NamedTuple):
    """One section of the report."""

    title: str
    text: str
    """What is measured, in a sentence or two."""
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    """Makes the rows one by one; what it raises ends this section alone."""
    share: float
    """Of the whole time."""


def write(tables: Sequence[Table], out: TextIO, *, budget_s: float, clock: Callable[[], float] = time.monotonic) -> int:
    """Measure the tables one after the other. A row is begun only while the section's time lasts: its share, and what
    the sections before it left. Returns how many rows failed; rows that were not begun are no failures."""
    started, shares, failed = clock(), 0.0, 0
    whole = sum(table.share for table in tables)
    for table in tables:
        shares += table.share
        until = started + budget_s * shares / whole
        _say(out, f"\n### {table.title}\n\n{table.text}\n")
        _say(out, _line(table.columns))
        _say(out, _line(["---"] * len(table.columns)))
        late = 0
        try:
            for row in table.rows():
                if clock() > until:
                    late += 1
                    continue
                cells, fails = _measured(row)
                failed += fails
                _say(out, _line([*row.name, *cells], len(table.columns)))
        except Exception as error:
            failed += 1
            _say(out, _line([_words(error)], len(table.columns)))
        _say(out, f"\n{late} more were not begun: the time was over." if late else "")
    _say(out, f"{clock() - started:.0f} s of {budget_s:.0f} s")
    return failed


def _measured(row: Row) -> tuple[Sequence[str], bool]:
    try:
        return row.measure(), False
    except UserError as refusal:  # looplm says that it does not do this here
        return [_cell(f"is refused: {refusal}")], False
    except Exception as error:
        return [_words(error)], True


def _words(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says, as a cell."""
    first = next(iter(str(error).strip().splitlines()), "")
    return _cell(f"fails: {type(error).__name__}: {first}")


def _cell(text: str) -> str:
    return text[:250].replace("|", "/")


def _line(cells: Sequence[str], columns: int = 0) -> str:
    return f"| {' | '.join([*cells, *[''] * (columns - len(cells))])} |"


def _say(out: TextIO, text: str) -> None:
    print(text, file=out, flush=True)
