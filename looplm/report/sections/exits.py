"""Exits against quality: what every rule costs at its mean depth, beside exits that know less or more."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from looplm.metrics.exit_sweep import ExitSweep, RuleSweep
from looplm.metrics.sweep import Sweep
from looplm.report import curves, pieces
from looplm.report.colours import MAIN, SERIES, SOFT
from looplm.report.exit_verdict import rule_verdicts
from looplm.report.found import Found
from looplm.report.picture import Hints, picture
from looplm.report.sections import exit_rule
from looplm.report.sections.axis import by_depth

EVALUATE = "`looplm eval WORKDIR` makes it"
SWEEP = "`looplm eval WORKDIR --exit RULE` sweeps its threshold and compares it with random, shuffled and oracle exits"
LABELLED = 14
"""Bars that have their number above them; of more the numbers would lie on one another."""
HOW = (
    "Step {0.step:,}, {0.num_tokens:,} tokens. Every token runs all {0.num_loops} loops here, and the exit says which "
    "of them is read. Random: as many tokens leave after every loop, whichever they are. Shuffled: the same exits, "
    "exchanged among the tokens of a document. Fixed: all tokens at one depth. Oracle, among the numbers: the best "
    "exits at that mean depth, chosen with the labels in sight."
)


def exits(found: Found) -> str:
    """Return the section."""
    sweep, swept = found.sweep, found.exits
    if swept is None and found.run.model.exit_gate is None and not (sweep and sweep.exit_histogram):
        told = f"The model has no exit gate (`model.exit_gate`). Other rules need none: {SWEEP}."
        return pieces.section("Exits", pieces.paragraph(told, "soft"))
    shown = [_histogram(sweep.exit_histogram, sweep)] if sweep and sweep.exit_histogram else []
    parts = [] if shown else [pieces.missing("The exit histogram is missing", EVALUATE)]
    if swept is None:
        return pieces.section("Exits", *parts, pieces.grid(*shown), pieces.paragraph(f"{SWEEP}.", "soft"))
    shown = [_all_rules(swept), *map(exit_rule.exit_rule, swept.rules), *shown]
    said = pieces.verdict_list(rule_verdicts(swept))
    told = pieces.paragraph(HOW.format(swept), "soft")
    return pieces.section("Exits", *parts, said, told, pieces.grid(*shown), _safe(swept), _alone(swept))


def _histogram(shares: Sequence[float], sweep: Sweep) -> str:
    percent = [100.0 * share for share in shares]

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        for loop, value in enumerate(percent, start=1):
            (bar,) = axes.bar(loop, value, color=MAIN, width=0.75)
            hints.add(bar, [f"loop {loop}: {value:.2f} % of the tokens"])
            if len(percent) <= LABELLED:
                axes.annotate(
                    f"{value:.0f}", (loop, value), (0, 2), textcoords="offset points", ha="center", fontsize=10
                )
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.12)
        by_depth(axes, "% of the tokens", "exit after loop")

    values = ", ".join(f"{value:.1f} % at loop {loop}" for loop, value in enumerate(percent, start=1))
    rows = [(str(loop), pieces.percent(share, 2)) for loop, share in enumerate(shares, start=1)]
    at = f"Exit threshold {sweep.exit_threshold:g}." if sweep.exit_threshold is not None else ""
    shown = picture(draw, f"Share of tokens by the loop they exit at: {values}.")
    return pieces.figure(shown, "Where tokens exit by the gate", at, pieces.numbers(("loop", "tokens"), rows))


def _all_rules(swept: ExitSweep) -> str:
    """Return all rules in one drawing, beside one depth for all tokens."""

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        depths = range(1, swept.num_loops + 1)
        (line,) = axes.plot(
            depths, swept.loss, "o--", color=SOFT, linewidth=1.2, markersize=3.5, label="one depth for all"
        )
        hints.add(line, [f"all at depth {x}: {y:.4f} nats" for x, y in zip(depths, swept.loss, strict=True)])
        for index, rule in enumerate(swept.rules):
            _points(axes, hints, rule, SERIES[index % len(SERIES)], rule.name)
        by_depth(axes, "nats per token", "mean depth (loops)")
        curves.legend(figure, axes)

    alt = f"Held-out loss against mean depth, full depth {swept.full_loss:.3f} nats: " + "; ".join(
        f"{rule.name} from {rule.points[-1].loss:.3f} at {rule.points[-1].mean_depth:.2f} loops"
        for rule in swept.rules
        if rule.points
    )
    rows = [
        [f"all at depth {at}", pieces.number(at, 2), pieces.number(loss, 4)] for at, loss in enumerate(swept.loss, 1)
    ]
    rows += [["oracle", pieces.number(one.mean_depth, 2), pieces.number(one.loss, 4)] for one in swept.oracle]
    numbers = pieces.numbers(("exits", "mean depth", "loss"), rows)
    return pieces.figure(
        picture(draw, f"{alt}."), "Exit rules against quality", "Lower and further left is better.", numbers
    )


def _points(axes: Axes, hints: Hints, rule: RuleSweep, colour: str, label: str) -> None:
    places, losses = [x.mean_depth for x in rule.points], [x.loss for x in rule.points]
    (line,) = axes.plot(places, losses, "o-", color=colour, markersize=4, label=label)
    hints.add(line, [f"{x.rule}: {x.loss:.4f} nats at {x.mean_depth:.2f} loops" for x in rule.points])


def _alone(swept: ExitSweep) -> str:
    """Return the numbers of rules that were asked at one threshold alone."""
    points = [point for rule in swept.rules if len(rule.points) == 1 for point in rule.points]
    return pieces.collapsed("Rules at one threshold", exit_rule.numbers(points)) if points else ""


def _safe(swept: ExitSweep) -> str:
    rows = [
        (
            safe.rule,
            pieces.number(safe.tolerance, 3),
            pieces.percent(safe.confidence, 0),
            pieces.number(safe.mean_depth, 2),
            pieces.signed(safe.excess_upper),
            pieces.percent(safe.disagreement_upper, 2),
        )
        for rule in swept.rules
        for safe in rule.safe
    ]
    if not rows:
        return pieces.paragraph("No threshold that leaves early keeps the loss within a tolerance.", "soft")
    caption = "The loosest thresholds that keep the loss of full depth within a tolerance, with the stated confidence."
    headers = ("rule", "tolerance (nats)", "confidence", "mean depth", "at most above full", "changed tokens, at most")
    return pieces.table(headers, rows, caption=caption, kind="named")
