"""Held-out numbers at every depth."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from looplm.metrics.sweep import Depth, Sweep
from looplm.report import curves, pieces
from looplm.report.colours import CALIBRATED, MAIN, SOFT
from looplm.report.found import Found
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth
from looplm.report.sections.change import Changes, calibrated_rows, cells, change, changes_of

LONG = 16
"""A table of more depths scrolls in its box."""
EVALUATE = "`looplm eval WORKDIR` makes it"


def depth(found: Found) -> str:
    """Return the section."""
    sweep = found.sweep
    if sweep is None:
        return pieces.section("Loss by depth", pieces.missing("The depth sweep is missing", EVALUATE))
    changes = changes_of(sweep)
    first = change(changes) if changes and len(sweep.rows) > 1 else ""
    shown = pieces.grid(first, _losses(sweep), _accuracies(sweep))
    return pieces.section("Loss by depth", shown, _table(sweep, changes), _over_training(found.sweeps))


def _losses(sweep: Sweep) -> str:
    rows = [row for row in sweep.rows if row.loss == row.loss]
    calibrated = calibrated_rows(sweep)

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        axes.axvline(sweep.trained_depth, color=SOFT, linestyle=":", linewidth=1.2)
        for name, colour, fill, shown in (("raw", MAIN, MAIN, rows), ("calibrated", CALIBRATED, "none", calibrated)):
            if shown:
                places, losses = [row.depth for row in shown], [row.loss for row in shown]
                (line,) = axes.plot(places, losses, "o-", color=colour, markerfacecolor=fill, label=name)
                hints.add(line, [f"depth {row.depth}, {name}: {row.loss:.4f} nats" for row in shown])
        if calibrated:
            curves.legend(figure, axes)
        by_depth(axes, "nats per token")

    def values(shown: Sequence[Depth]) -> str:
        return ", ".join(f"{row.loss:.3f} at depth {row.depth}" for row in shown)

    alt = f"Held-out loss in nats by depth, trained depth {sweep.trained_depth}: {values(rows)}."
    if calibrated:
        alt += f" Calibrated: {values(calibrated)}."
    told = f"The dotted line is the trained depth, {sweep.trained_depth}. Intervals of the losses themselves are wide, "
    told += "since documents differ more than depths do; they are among the numbers."
    return pieces.figure(picture(draw, alt), "Held-out loss", told, _loss_numbers(sweep, calibrated))


def _loss_numbers(sweep: Sweep, calibrated: Sequence[Depth]) -> str:
    temperatures = dict(zip(sweep.depths, sweep.calibrated.temperature, strict=True)) if sweep.calibrated else {}
    losses = {row.depth: row.loss for row in calibrated}
    headers = ["depth", "loss", "95 % interval", *(["calibrated", "temperature"] if calibrated else [])]
    rows = []
    for row in sweep.rows:
        ends = f"{pieces.number(row.low, 4)} to {pieces.number(row.high, 4)}"
        beside = [pieces.number(losses[row.depth], 4), pieces.number(temperatures[row.depth], 3)] if calibrated else []
        rows.append([str(row.depth), pieces.number(row.loss, 4), ends, *beside])
    return pieces.numbers(headers, rows)


def _accuracies(sweep: Sweep) -> str:
    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        axes.axvline(sweep.trained_depth, color=SOFT, linestyle=":", linewidth=1.2)
        (line,) = axes.plot(
            [row.depth for row in sweep.rows], [100 * row.accuracy for row in sweep.rows], "o-", color=MAIN
        )
        hints.add(line, [f"depth {row.depth}: {100 * row.accuracy:.2f} %" for row in sweep.rows])
        by_depth(axes, "% of the tokens")

    values = ", ".join(f"{100 * row.accuracy:.2f} % at depth {row.depth}" for row in sweep.rows)
    rows = [(str(row.depth), pieces.percent(row.accuracy, 2)) for row in sweep.rows]
    numbers = pieces.numbers(("depth", "accuracy"), rows)
    told = "Share of tokens whose likeliest successor is the right one."
    return pieces.figure(
        picture(draw, f"Next-token accuracy by depth: {values}."), "Next-token accuracy", told, numbers
    )


def _table(sweep: Sweep, changes: Changes | None) -> str:
    of_depth = {one.depth: one for one in changes.raw} if changes else {}
    compared = [f"against depth {changes.reference}", "95 % interval"] if changes else []
    rows = []
    for row in sweep.rows:
        beside = cells(of_depth[row.depth], changes.reference) if changes else ()
        rows.append(
            [
                str(row.depth),
                pieces.number(row.loss, 4),
                *beside,
                pieces.number(row.bits_per_byte, 4),
                pieces.percent(row.accuracy, 2),
            ]
        )
    marked = next((index for index, row in enumerate(sweep.rows) if row.depth == sweep.trained_depth), None)
    caption = f"Step {sweep.step:,}; the trained depth is bold."
    headers = ("depth", "loss", *compared, "bits per byte", "accuracy")
    box = "card tall" if len(rows) > LONG else "card"
    return pieces.table(headers, rows, caption=caption, marked=marked, box=box)


def _over_training(sweeps: Sequence[Sweep]) -> str:
    if len(sweeps) < 2:
        return ""
    depths = sorted({row.depth for sweep in sweeps for row in sweep.rows})
    rows = []
    for sweep in sweeps:
        losses = {row.depth: row.loss for row in sweep.rows}
        rows.append((f"{sweep.step:,}", *(pieces.number(losses.get(depth), 4) for depth in depths)))
    headers = ("step", *(f"depth {depth}" for depth in depths))
    listed = pieces.table(headers, rows, caption="Nats per token.", box="")
    return pieces.collapsed(f"Held-out loss over training: {len(sweeps)} sweeps", listed)
