"""What several tries of every example are worth, and how to choose among them."""

from matplotlib.figure import Figure

from looplm.report import curves, pieces
from looplm.report.colours import ACCENT, MAIN, SERIES
from looplm.report.found import Found
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth


def restarts(found: Found) -> str:
    """Return the section; nothing where examples were not tried several times."""
    one = found.restarts
    if one is None:
        return ""
    told = (
        f"Step {one.step:,}: {one.num_documents:,} examples, {pieces.count(one.depth, 'loop')} a try, each from first "
    )
    told += (
        f"states or with noise of its own. One try solves {pieces.percent(one.single, 2)}, the mean over all. Settled: "
    )
    told += (
        f"the try is believed whose state moved least over the last {pieces.count(one.settling_loops, 'loop')} (arXiv "
    )
    told += "2605.21488); vote: the answer that most give; any: what no choice can exceed."
    series = (("settled", MAIN, one.settled), ("vote", ACCENT, one.vote), ("any", SERIES[2], one.any_of_them))

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        for name, colour, shares in series:
            percent = [100 * share for share in shares]
            (line,) = axes.plot(one.tries, percent, "o-", color=colour, label=name)
            hints.add(line, [f"{name} of {tries}: {x:.2f} %" for tries, x in zip(one.tries, percent, strict=True)])
        by_depth(axes, "% of the examples", "tries")
        curves.legend(figure, axes)

    values = "; ".join(
        f"{name}: {pieces.percent(shares[0])} of {one.tries[0]}, {pieces.percent(shares[-1])} of {one.tries[-1]}"
        for name, _, shares in series
    )
    rows = [
        (str(tries), *(pieces.percent(share, 2) for share in shares))
        for tries, *shares in zip(one.tries, one.settled, one.vote, one.any_of_them, strict=True)
    ]
    shown = pieces.figure(picture(draw, f"Examples solved by the best of several tries. {values}."), "Solved by tries")
    table = pieces.table(("tries", "settled", "vote", "any"), rows)
    return pieces.section("Several tries", pieces.paragraph(told, "soft"), pieces.pair(shown, table))
