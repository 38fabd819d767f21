"""Whether the loops forget where they began."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from looplm.report import curves, pieces
from looplm.report.colours import MAIN
from looplm.report.found import Found
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth


def first_states(found: Found) -> str:
    """Return the section; nothing where passes from several first states were not compared."""
    one = found.first_states
    if one is None:
        return ""
    told = f"Step {one.step:,}: passes from {one.num_states} first states, drawn for every token, compared in pairs. A "
    told += "path-independent model comes to the same state from wherever it began (arXiv 2211.09961)."
    shown = (
        _curve("Distance of the states", "of the norm", one.depths, one.state_distance, logarithmic=True),
        _curve("Divergence of the predictions", "KL (nats)", one.depths, one.divergence, logarithmic=True),
        _curve("Same likeliest token", "share of the tokens", one.depths, one.agreement),
        _curve("Loss, mean of the passes", "nats per token", one.depths, one.loss),
    )
    rows = [
        (str(depth), *(f"{value:.4g}" for value in values))
        for depth, *values in zip(
            one.depths, one.state_distance, one.divergence, one.agreement, one.loss, one.loss_spread, strict=True
        )
    ]
    headers = ("depth", "distance", "divergence", "same token", "loss", "spread of the loss")
    numbers = pieces.collapsed("Numbers of all depths", pieces.table(headers, rows, box=""))
    return pieces.section("First states", pieces.paragraph(told, "soft"), pieces.grid(*shown), numbers)


def _curve(title: str, unit: str, depths: Sequence[int], values: Sequence[float], *, logarithmic: bool = False) -> str:
    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        (line,) = axes.plot(depths, values, "o-", color=MAIN)
        hints.add(line, [f"depth {depth}: {value:.4g}" for depth, value in zip(depths, values, strict=True)])
        if logarithmic and min(values) > 0 and max(values) > 30 * min(values):
            curves.logarithmic(axes)
        by_depth(axes, unit)

    told = ", ".join(f"{value:.4g} at depth {depth}" for depth, value in zip(depths, values, strict=True))
    return pieces.figure(picture(draw, f"{title}: {told}."), title)
