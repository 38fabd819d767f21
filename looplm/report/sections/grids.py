"""Puzzles with what a reasoner answers after some segments, wrong cells marked."""

from html import escape

from looplm.metrics.answers import Grid
from looplm.report import pieces
from looplm.report.found import Found

NO_LABEL = -100
SMALL_FROM = 13
"""Columns from which on cells are small."""


def grids(found: Found) -> str:
    """Return the section; nothing where no puzzle was kept."""
    one = found.answers
    if one is None or not one.grids:
        return ""
    told = (
        f"Step {one.step:,}: the first puzzles, and those of the first batch that are wrong after most segments. Cells "
    )
    told += "are tokens, as the model reads and writes them; wrong ones are underlined on a red ground, those that the "
    told += "puzzle has told are grey. Cells without a label cannot be wrong."
    shown = [_puzzle(grid, number, one.segment_loops) for number, grid in enumerate(one.grids, 1)]
    return pieces.section("Puzzles", pieces.paragraph(told, "soft"), *shown)


def _puzzle(grid: Grid, number: int, segment_loops: int) -> str:
    parts = []
    for segment, guess in zip(grid.segments, grid.guesses, strict=True):
        loops = pieces.count(segment * segment_loops, "loop")
        wrong = sum(was_wrong(*pair) for pair in zip(guess, grid.wanted, strict=True))
        scored = sum(label != NO_LABEL for label in grid.wanted)
        title = f"{loops}: {wrong} of {scored} wrong"
        label = f"Puzzle {number} after {title}"
        parts.append(f"<div><h4>{escape(title)}</h4>{_cells(grid, guess, label)}</div>")
    return f'<div class="card"><h3>Puzzle {number}</h3><div class="guesses">{"".join(parts)}</div></div>'


def was_wrong(guess: int, label: int) -> bool:
    """Return whether a cell that is scored has another token than its label."""
    return label not in (NO_LABEL, guess)


def _cells(grid: Grid, guess: list[int], label: str) -> str:
    cells = [
        f'<td class="wrong">{token}</td>' if was_wrong(token, wanted)
        else f'<td class="given">{token}</td>' if token == given
        else f"<td>{token}</td>"
        for token, wanted, given in zip(guess, grid.wanted, grid.given, strict=True)
    ]  # fmt: skip
    rows = ["".join(cells[start : start + grid.columns]) for start in range(0, len(cells), grid.columns)]
    kind = "cells small" if grid.columns >= SMALL_FROM else "cells"
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}" aria-label="{escape(label)}"><tbody>{body}</tbody></table></div>'
