"""Of a task: how many examples are solved at a depth, and how many by then."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from looplm.metrics.sweep import Solve
from looplm.report import curves, pieces
from looplm.report.colours import ACCENT, MAIN, SOFT
from looplm.report.found import Found
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth


def solve(found: Found) -> str:
    """Return the section; nothing where no task was scored."""
    sweep = found.sweep
    if sweep is None or sweep.solve is None:
        return ""
    told = f"{sweep.solve.num_examples:,} examples; one is solved when all its answers are right. "
    told += "Solved by a depth: at it, or at one before it, which is what leaving at the right loop could reach."
    parts = [
        pieces.paragraph(told, "soft"),
        pieces.pair(_picture(sweep.solve, sweep.trained_depth), _table(sweep.solve)),
    ]
    if needs := _needs(sweep.solve):
        parts.insert(1, pieces.paragraph(needs, "soft"))
    return pieces.section("Examples solved", *parts)


def _needs(one: Solve) -> str:
    told = [
        f"{name.removeprefix('p')} % of them after {pieces.count(loops, 'loop')}"
        for name, loops in one.needs.items()
        if loops is not None
    ]
    return f"Of the examples that are ever solved: {', '.join(told)}." if told else ""


def _picture(one: Solve, trained_depth: int) -> str:
    def series(axes: Axes, hints: Hints, name: str, colour: str, share: Sequence[float], ends: Sequence) -> None:
        percent = [100 * value for value in share]
        low, high = ([100 * value for value in side] for side in ends)
        axes.fill_between(one.depths, low, high, color=colour, alpha=0.18, linewidth=0)
        (line,) = axes.plot(one.depths, percent, "o-", color=colour, label=name)
        hints.add(line, [f"{name} {depth}: {value:.2f} %" for depth, value in zip(one.depths, percent, strict=True)])

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        axes.axvline(trained_depth, color=SOFT, linestyle=":", linewidth=1.2)
        series(axes, hints, "by depth", ACCENT, one.by, (one.by_low, one.by_high))
        series(axes, hints, "at depth", MAIN, one.at, (one.at_low, one.at_high))
        by_depth(axes, "% of the examples")
        curves.legend(figure, axes)

    values = ", ".join(f"{100 * x:.1f} % at depth {depth}" for depth, x in zip(one.depths, one.at, strict=True))
    told = "Bands are 95 % intervals (Clopper and Pearson). The dotted line is the trained depth."
    return pieces.figure(
        picture(draw, f"Share of the examples that are solved: {values}."), "Solved at and by a depth", told
    )


def _table(one: Solve) -> str:
    def ends(low: float, high: float) -> str:
        return f"{pieces.percent(low, 2)} to {pieces.percent(high, 2)}"

    rows = [
        (
            *(str(depth), pieces.percent(one.at[at], 2), ends(one.at_low[at], one.at_high[at])),
            *(pieces.percent(one.by[at], 2), ends(one.by_low[at], one.by_high[at]), pieces.percent(one.lost[at], 2)),
        )
        for at, depth in enumerate(one.depths)
    ]
    return pieces.table(("depth", "solved at", "95 % interval", "solved by", "95 % interval", "lost again"), rows)
