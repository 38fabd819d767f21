"""What depth is worth: the loss at every depth minus that at the depth of reference, paired by document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from looplm.metrics.sweep import Depth, Gain, Sweep
from looplm.report import pieces
from looplm.report.colours import BAD, CALIBRATED, GOOD, SOFT
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth

ASIDE = 0.16
"""How far the calibrated numbers stand beside the raw ones, in loops."""


class Change(NamedTuple):
    """The loss at a depth minus that at the depth of reference, nats per token, with its 95 % interval."""

    depth: int
    nats: float
    low: float
    high: float


@dataclass(frozen=True)
class Changes:
    """Of all depths against one of them."""

    reference: int
    raw: list[Change]
    calibrated: list[Change]
    """Empty where nothing was calibrated."""


def changes_of(sweep: Sweep) -> Changes | None:
    """Return the changes against the depth that the sweep compares with; None where it compares nothing."""
    raw = _changes(sweep.rows, sweep.gain)
    if raw is None or sweep.gain is None:
        return None
    fitted = sweep.calibrated
    calibrated = _changes(calibrated_rows(sweep), fitted.gain) if fitted else None
    return Changes(sweep.gain.to_depth, raw, calibrated or [])


def calibrated_rows(sweep: Sweep) -> list[Depth]:
    """Return the calibrated numbers depth by depth, shallow first; empty where there are none."""
    fitted = sweep.calibrated
    if fitted is None:
        return []
    losses = (sweep.depths, fitted.loss, fitted.loss_low, fitted.loss_high, fitted.bits_per_byte)
    columns = (*losses, sweep.accuracy, fitted.change_low, fitted.change_high)
    return sorted(Depth(*row) for row in zip(*columns, strict=True))


def _changes(rows: Sequence[Depth], gain: Gain | None) -> list[Change] | None:
    first = next((row.loss for row in rows if gain and row.depth == gain.from_depth), None)
    if first is None or gain is None:
        return None
    reference = first - gain.nats  # the depth of reference itself may be none of the depths
    return [Change(row.depth, row.loss - reference, row.change_low, row.change_high) for row in rows]


def change(changes: Changes) -> str:
    """Return the figure."""

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        axes.axhline(0.0, color=SOFT, linewidth=0.9)
        beside = ASIDE if changes.calibrated else 0.0
        _series(axes, hints, changes, rings=False, aside=-beside)
        _series(axes, hints, changes, rings=True, aside=beside)
        (dot,) = axes.plot(changes.reference, 0.0, "D", color=SOFT, markersize=5)
        hints.add(dot, [f"depth {changes.reference}: what the others are compared with"])
        axes.grid(visible=False, axis="x")
        by_depth(axes, "nats per token")

    values = "; ".join(f"depth {x.depth} {x.nats:+.4f}, {x.low:+.4f} to {x.high:+.4f}" for x in changes.raw)
    alt = f"Change of the held-out loss in nats against depth {changes.reference}, with 95 % intervals: {values}."
    told = "Below zero is better. Intervals are of 95 %, paired by document: green is clearly lower than at depth "
    told += f"{changes.reference}, red clearly higher, grey neither."
    if changes.calibrated:
        told += " Rings: calibrated, with a temperature of its own for every depth."
    title = f"Change of the loss against depth {changes.reference}"
    return pieces.figure(picture(draw, alt), title, told, _numbers(changes))


def _series(axes: Axes, hints: Hints, changes: Changes, *, rings: bool, aside: float) -> None:
    for one in changes.calibrated if rings else changes.raw:
        if one.depth == changes.reference:
            continue
        colour = CALIBRATED if rings else GOOD if one.high < 0 else BAD if one.low > 0 else SOFT
        place = one.depth + aside
        axes.plot([place, place], [one.low, one.high], color=colour, linewidth=2.0, solid_capstyle="butt")
        (dot,) = axes.plot(place, one.nats, "o", color=colour, markerfacecolor="none" if rings else colour)
        told = f"{one.nats:+.4f} nats, 95 % interval {one.low:+.4f} to {one.high:+.4f}"
        hints.add(dot, [f"depth {one.depth}{', calibrated' * rings}: {told}"])


def cells(one: Change, reference: int) -> tuple[str | pieces.Cell, ...]:
    """Return the cells of a change and of its interval."""
    return ("reference", "") if one.depth == reference else pieces.change(*one[1:])


def _numbers(changes: Changes) -> str:
    calibrated = {one.depth: one for one in changes.calibrated}
    headers = ["depth", "change", "95 % interval", *(["calibrated", "95 % interval"] if calibrated else [])]
    rows = []
    for one in changes.raw:
        beside = cells(calibrated[one.depth], changes.reference) if calibrated else ()
        rows.append([str(one.depth), *cells(one, changes.reference), *beside])
    return pieces.numbers(headers, rows)
