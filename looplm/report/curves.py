"""Numbers over the steps of a run: a drawing of each, and a table of some of its points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from looplm.report import pieces
from looplm.report.colours import MAIN
from looplm.report.history import Column, History
from looplm.report.picture import Hints, picture

ROWS = 20
"""Of a table over the steps: so many steps, evenly spread, the first and the last among them."""


@dataclass(frozen=True)
class Panel:
    """One metric over the steps."""

    name: str
    title: str
    unit: str = ""
    logarithmic: bool = False
    from_zero: bool = False
    """Large counts: the axis starts at zero and is labelled in k and M."""


def figures(history: History, panels: Sequence[Panel]) -> list[str]:
    """Return a figure for each metric that was measured."""
    return [shown for panel in panels if (shown := _figure(history, panel))]


def _figure(history: History, panel: Panel) -> str:
    steps, values = history.column(panel.name)
    if not len(values):
        return ""

    def draw(figure: Figure, _: Hints) -> None:
        axes = figure.subplots()
        axes.plot(steps, values, color=MAIN, linewidth=1.1, marker=marker(values))
        if panel.logarithmic and values.max() > 30 * values.min() > 0:
            logarithmic(axes)
        elif panel.from_zero:
            if values.max() >= 1000:
                axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_ylim(bottom=0.0, top=1.08 * values.max() or 1.0)
        else:
            axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        over_steps(axes, panel.unit)

    alt = f"{panel.title} against step: {course(steps, values, panel.unit)}."
    table = pieces.numbers(("step", panel.name), rows([(steps, values)]), caption=thinned(len(values)))
    return pieces.figure(picture(draw, alt), panel.title, numbers=table)


def legend(figure: Figure, axes: Axes, title: str = "") -> None:
    """Name the curves above the axes, where they hide none; of many loops some are named."""
    handles, labels = axes.get_legend_handles_labels()
    every = -(-len(labels) // 8) if title else 1
    handles, labels = handles[::every], labels[::every]
    columns = min(len(labels), 8 if title else 2)
    spaces = {"columnspacing": 0.9, "handlelength": 1.3, "handletextpad": 0.4, "borderpad": 0.1, "borderaxespad": 0.1}
    if title:
        handles, labels, columns = [Line2D([], [], linestyle="none"), *handles], [title, *labels], columns + 1
    figure.legend(handles, labels, loc="outside upper right", ncols=columns, **spaces)


def logarithmic(axes: Axes) -> None:
    """Make the vertical axis one of magnitudes, without raised letters, which would be too small."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def over_steps(axes: Axes, unit: str) -> None:
    """Label the axes of a drawing over the steps."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="step", ylabel=unit)


def rows(columns: Sequence[tuple[Column, Column]], digits: int = 4) -> list[list[str]]:
    """Return rows of some steps with the value of every column there; the first column says which steps."""
    steps = columns[0][0]
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, ROWS).round().astype(int))]
    found = [dict(zip(steps.tolist(), values.tolist(), strict=True)) for steps, values in columns]
    return [
        [f"{step:,.0f}", *(general(values.get(step), digits) for values in found)]
        for step in np.unique(chosen).tolist()
    ]


def thinned(how_many: int) -> str:
    """Say which steps a table shows."""
    return f"{ROWS} of {how_many:,} steps" if how_many > ROWS else ""


def general(value: float | None, digits: int = 4) -> str:
    """Return a number of any size with so many digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def course(steps: np.ndarray, values: np.ndarray, unit: str = "") -> str:
    """Say where a curve begins and ends."""
    last = f"{values[-1]:.4g} {unit}".rstrip()
    return f"{values[0]:.4g} at step {steps[0]:.0f}, {last} at step {steps[-1]:.0f}"


def marker(values: np.ndarray) -> str | None:
    """Return a marker for a single point: a line of one would be invisible."""
    return "o" if len(values) == 1 else None
