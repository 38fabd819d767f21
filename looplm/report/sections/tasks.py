"""What the model reaches in tasks of lm-evaluation-harness, depth by depth."""

from collections.abc import Sequence
from itertools import groupby

from matplotlib.figure import Figure

from looplm.metrics.task_results import TaskNumber
from looplm.report import pieces
from looplm.report.colours import MAIN
from looplm.report.found import Found
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth

MOST_DRAWN = 12
"""So many metrics are drawn; the table has all of them."""
REACH = 1.96
"""Standard errors to either side that an interval of 95 % reaches."""


def tasks(found: Found) -> str:
    """Return the section; nothing where no task was asked."""
    step, numbers = found.tasks
    if not numbers:
        return ""
    metrics = [(name, list(group)) for name, group in groupby(numbers, key=lambda one: (one.task, one.metric))]
    several = [(name, group) for name, group in metrics if len(group) > 1]
    drawn = pieces.grid(*(_picture(*name, group) for name, group in several[:MOST_DRAWN]))
    told = f"Step {step:,}, by lm-evaluation-harness. Intervals are of 95 %, from its standard errors, each depth by "
    told += "itself; `looplm eval --tasks` prints what a depth changes, example by example."
    return pieces.section("Tasks", pieces.paragraph(told, "soft"), drawn, _table(metrics))


def _picture(task: str, metric: str, numbers: Sequence[TaskNumber]) -> str:
    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        for one in numbers:
            reach = REACH * (one.error or 0.0)
            axes.plot([one.depth] * 2, [one.value - reach, one.value + reach], color=MAIN, linewidth=2.0)
        (line,) = axes.plot([one.depth for one in numbers], [one.value for one in numbers], "o-", color=MAIN)
        hints.add(line, [f"depth {one.depth}: {one.value:.4f}" for one in numbers])
        by_depth(axes, metric)

    values = ", ".join(f"{one.value:.4f} at depth {one.depth}" for one in numbers)
    return pieces.figure(picture(draw, f"{metric} of {task}: {values}."), f"{task}: {metric}")


def _table(metrics: Sequence[tuple[tuple[str, str], Sequence[TaskNumber]]]) -> str:
    depths = sorted({one.depth for _, numbers in metrics for one in numbers})
    rows = []
    for (task, metric), numbers in metrics:
        cells = {one.depth: _cell(one) for one in numbers}
        rows.append([task, metric, *(cells.get(depth, "-") for depth in depths)])
    caption = "Value and standard error."
    return pieces.table(
        ("task", "metric", *(f"depth {depth}" for depth in depths)), rows, caption=caption, kind="named"
    )


def _cell(one: TaskNumber) -> str:
    return pieces.number(one.value, 4) + (f" ± {pieces.number(one.error, 4)}" if one.error is not None else "")
