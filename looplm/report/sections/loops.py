"""What every loop does to the state, on held-out text and over training."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from looplm.metrics.sweep import LoopMeans
from looplm.report import curves, pieces
from looplm.report.colours import MAIN, SOFT, of_loop
from looplm.report.curves import Panel
from looplm.report.found import Found
from looplm.report.history import History, smooth
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth

OVER_TRAINING = (
    Panel("gate/expected_depth", "Expected depth by the gate", "loops"),
    Panel("loop/num_loops", "Loops of a step", "loops"),
    Panel("loop/residual_rel", "Change by the last loop", "of the state", logarithmic=True),
    Panel("loop/state_norm", "Size of the last state", "root mean square", logarithmic=True),
    Panel("loop/update_cosine", "Cosine of the last two updates"),
    Panel("loop/token_correlation", "Cosine between tokens' states"),
    Panel("loop/decay_mean", "Decay of the injection, mean"),
)
IDLE, COLLAPSED = 0.01, 0.95
"""A loop that changes the state by less, and tokens whose states are more alike, are told."""


def loops(found: Found) -> str:
    """Return the section."""
    means = found.sweep.loops if found.sweep else None
    parts = [pieces.missing("What every loop does on held-out text is missing", "`looplm eval WORKDIR` measures it")]
    if means is not None and found.sweep is not None:
        parts = [
            _sentences(means, found.sweep.trained_depth),
            pieces.grid(*_by_loop(means, found.sweep.trained_depth)),
            _table(means),
        ]
    drawn = found.history.column("loop/num_loops")[1]
    panels = [panel for panel in OVER_TRAINING if panel.name != "loop/num_loops" or len(set(drawn.tolist())) > 1]
    if trained := [*curves.figures(found.history, panels), *_exit_shares(found.history)]:
        parts += ["<h3>Over training</h3>", pieces.grid(*trained)]
    return pieces.section("What the loops do", *parts)


def _sentences(means: LoopMeans, trained_depth: int) -> str:
    """Say what the numbers show of themselves."""
    last, changes = min(trained_depth, len(means.residual_rel)), means.residual_rel
    told = f"Loop {last} changes the state by {100 * changes[last - 1]:.1f} % of its size"
    told += f", loop 1 by {100 * changes[0]:.1f} %." if last > 1 else "."
    idle = [loop for loop in range(2, len(changes) + 1) if max(changes[loop - 1 :]) < IDLE]
    if idle:
        told += f" From loop {idle[0]} on a loop changes less than {100 * IDLE:.0f} %: it idles."
    if (cosine := means.token_correlation[last - 1]) > COLLAPSED:
        told += f" The states of different tokens are alike (cosine {cosine:.3f}): they collapse."
    return pieces.paragraph(f"{told} All numbers are means over the held-out tokens.", "soft")


def _by_loop(means: LoopMeans, trained_depth: int) -> list[str]:
    shown = [
        _curve("Change of the state", "of its size", means.residual_rel, trained_depth, "|new - old| / |new|."),
        _curve("Size of the state", "root mean square", means.state_norm, trained_depth),
    ]
    if len(means.update_cosine) > 1:
        told = "Near 1 the state drifts on, near -1 it swings to and fro."
        shown.append(_curve("Cosine with the update before", "", means.update_cosine, trained_depth, told, first=2))
    told = "At 1 all tokens are alike."
    shown.append(_curve("Cosine between tokens' states", "", means.token_correlation, trained_depth, told))
    if means.exit_probability:
        told = "Mean of the gate's distribution over the loops."
        shown.append(_curve("Probability of leaving", "", means.exit_probability, trained_depth, told))
    return shown


def _curve(title: str, unit: str, values: Sequence[float], trained: int, told: str = "", first: int = 1) -> str:
    places = list(range(first, len(values) + 1))
    values = values[first - 1 :]

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        axes.axvline(trained, color=SOFT, linestyle=":", linewidth=1.2)
        (line,) = axes.plot(places, values, "o-", color=MAIN)
        hints.add(line, [f"loop {loop}: {value:.4g}" for loop, value in zip(places, values, strict=True)])
        by_depth(axes, unit, "loop")

    shown = ", ".join(f"{value:.4g} in loop {loop}" for loop, value in zip(places, values, strict=True))
    rows = [(str(loop), curves.general(value)) for loop, value in zip(places, values, strict=True)]
    return pieces.figure(
        picture(draw, f"{title}: {shown}."), title, told, pieces.numbers(("loop", title.lower()), rows)
    )


def _table(means: LoopMeans) -> str:
    rows = []
    for at in range(len(means.state_norm)):
        gone = means.exit_probability[at] if means.exit_probability and at < len(means.exit_probability) else None
        values = (means.residual_rel, means.state_norm, means.update_cosine, means.token_correlation)
        cells = [curves.general(column[at]) for column in values]
        rows.append((str(at + 1), *cells, pieces.percent(gone, 2)))
    headers = ("loop", "change", "size", "cosine of updates", "cosine of tokens", "leaves")
    return pieces.collapsed("All of it loop by loop", pieces.table(headers, rows, box=""))


def _exit_shares(history: History) -> list[str]:
    """Return the gate's mean distribution over the steps."""
    columns = {loop: history.column(name) for loop, name in history.numbered("gate/exit_loop_").items()}
    columns = {loop: (steps, smooth(shares)) for loop, (steps, shares) in columns.items() if len(shares)}
    if not columns:
        return []

    def draw(figure: Figure, _: Hints) -> None:
        axes = figure.subplots()
        for index, (loop, (steps, shares)) in enumerate(columns.items()):
            style: dict[str, Any] = {
                "color": of_loop(index, len(columns)),
                "linewidth": 1.3,
                "marker": curves.marker(shares),
            }
            axes.plot(steps, 100 * shares, label=f"{loop}", **style)
        curves.over_steps(axes, "% of the tokens")
        curves.legend(figure, axes, "after loop")

    last = ", ".join(f"{shares[-1]:.3f} after loop {loop}" for loop, (_, shares) in columns.items())
    headers = ("step", *(f"loop {loop}" for loop in columns))
    table = pieces.numbers(headers, curves.rows(list(columns.values())))
    shown = picture(draw, f"Probability of leaving after each loop against step, smoothed; at the end {last}.")
    return [pieces.figure(shown, "Leaving by the gate, smoothed", numbers=table)]
