"""One exit rule: what it is worth against exits that know nothing, and all its numbers."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from looplm.metrics.exit_sweep import ExitPoint, RuleSweep
from looplm.report import curves, pieces
from looplm.report.colours import ACCENT, BAD, GOOD, MAIN, SERIES, SOFT
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth
from looplm.report.verdict import Tone

RANDOM = ACCENT
CONTROLS = {"shuffled": (SERIES[3], ":"), "fixed": (SOFT, "-.")}
"""How the other controls are drawn. The oracle is far below all of them; it is among the numbers."""


def exit_rule(rule: RuleSweep) -> str:
    """Return the figure; nothing for a rule that was asked at one threshold alone, for which there is no curve."""
    if len(rule.points) < 2:
        return ""

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        places = [point.mean_depth for point in rule.points]
        axes.axhline(0.0, color=RANDOM, linewidth=1.2, linestyle="--", label="random")
        for name, (colour, dashes) in CONTROLS.items():
            losses = [getattr(point.controls, name) - point.controls.random for point in rule.points]
            axes.plot(places, losses, dashes, color=colour, linewidth=1.3, marker=".", markersize=4, label=name)
        axes.plot(places, [-point.gain for point in rule.points], color=MAIN, linewidth=1.2, label=rule.name)
        for point in rule.points:
            colour = GOOD if point.gain_low > 0 else BAD if point.gain_high < 0 else SOFT
            place, ends = [point.mean_depth] * 2, [-point.gain_high, -point.gain_low]
            axes.plot(place, ends, color=colour, linewidth=2.0, solid_capstyle="butt")
            (dot,) = axes.plot(point.mean_depth, -point.gain, "o", color=colour)
            told = f"{-point.gain:+.4f} nats, 95 % interval {ends[0]:+.4f} to {ends[1]:+.4f}"
            hints.add(dot, [f"{point.rule}, mean depth {point.mean_depth:.2f}: {told}"])
        by_depth(axes, "nats per token", "mean depth (loops)")
        curves.legend(figure, axes)

    points = "; ".join(
        f"{x.rule} {x.loss:.4f} at {x.mean_depth:.2f} loops, random {x.controls.random:.4f}" for x in rule.points
    )
    told = (
        "Loss minus that of random exits of the same mean depth; below zero is better. Bars are paired 95 % intervals: "
    )
    told += "green is clearly better, red clearly worse."
    shown = picture(draw, f"Loss of exits by {rule.name} against mean depth: {points}.")
    return pieces.figure(shown, f"Exits by {rule.name} against random exits", told, numbers(rule.points))


def numbers(points: Sequence[ExitPoint]) -> str:
    """Return all numbers of a rule at its thresholds."""
    costs = ("loss", "against full", "95 % interval", "accuracy", "changed")
    controls = ("fixed", "random", "shuffled", "oracle", "gain on random", "95 % interval")
    rows: list[list[str | pieces.Cell]] = []
    for x in points:
        tone: Tone = "good" if x.gain_low > 0 else "bad" if x.gain_high < 0 else "neutral"
        losses = (x.controls.fixed, x.controls.random, x.controls.shuffled, x.controls.oracle)
        rows.append(
            [
                *(x.rule, pieces.number(x.mean_depth, 2), str(x.depth_p50), str(x.depth_p90), str(x.depth_p99)),
                pieces.number(x.loss, 4),
                *pieces.change(x.excess, x.excess_low, x.excess_high),
                *(pieces.percent(x.accuracy, 2), pieces.percent(x.disagreement, 2)),
                *(pieces.number(loss, 4) for loss in losses),
                pieces.Cell(pieces.signed(x.gain), tone),
                pieces.interval(x.gain_low, x.gain_high),
            ]
        )
    return pieces.numbers(("rule", "mean depth", "p50", "p90", "p99", *costs, *controls), rows)
