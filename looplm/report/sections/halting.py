"""Of a reasoner: when its gate says that it may halt, and whether the answer is right then."""

from matplotlib.figure import Figure

from looplm.config.schema import NoCarry, SupervisedRows
from looplm.metrics.answers import Answers
from looplm.report import curves, pieces
from looplm.report.colours import ACCENT, MAIN, SERIES
from looplm.report.curves import Panel
from looplm.report.found import Found
from looplm.report.picture import Hints, picture
from looplm.report.sections.axis import by_depth

SHARE = "share of the rows"
IN_TRAINING = (
    Panel("train/exact", "Training: all labels met, of rows that end", SHARE),
    Panel("gate/right", "Training: the gate knew, of rows that end", SHARE),
)
OF_ROWS = (
    Panel("carry/segments", "Training: segments of rows that end", "segments"),
    Panel("carry/replaced", "Training: rows that end in a step", SHARE),
)


def halting(found: Found) -> str:
    """Return the section; nothing of a run that learns no halting by rows."""
    if not isinstance(found.run.objective, SupervisedRows):
        return ""
    panels = IN_TRAINING if isinstance(found.run.carry, NoCarry) else (*IN_TRAINING, *OF_ROWS)
    training = pieces.grid(*curves.figures(found.history, panels))
    one = found.answers
    if one is None:
        lacking = pieces.missing("The halting curve is missing", "`looplm eval WORKDIR` measures it")
        return pieces.section("Halting", lacking, training)
    told = f"Step {one.step:,}: {one.num_documents:,} examples over segments of "
    told += f"{pieces.count(one.segment_loops, 'loop')}, each from the state that the one before left. An example has "
    told += "halted when the gate has said once that it may; all go on here, to see what it would have missed."
    parts = [pieces.paragraph(told, "soft"), pieces.pair(_picture(one), _table(one))]
    if one.attempts is not None:
        votes = one.attempts
        solved = f"{votes.count} attempts at every question, by votes over augmentations: "
        solved += f"{pieces.percent(votes.solved)} of {pieces.count(votes.num_tasks, 'task')} solved."
        parts.insert(1, pieces.paragraph(solved))
    return pieces.section("Halting", *parts, training)


def _picture(one: Answers) -> str:
    segments = list(range(1, len(one.halted) + 1))
    series = (
        ("halted by then", MAIN, one.halted), ("solved then", SERIES[2], one.solved),
        ("right when halted", ACCENT, one.right),
    )  # fmt: skip

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        for name, colour, shares in series:
            known = [
                (segment, 100 * share) for segment, share in zip(segments, shares, strict=True) if share is not None
            ]
            if known:
                (line,) = axes.plot(*zip(*known, strict=True), "o-", color=colour, label=name)
                hints.add(line, [f"segment {segment}, {name}: {percent:.2f} %" for segment, percent in known])
        axes.set_ylim(-3, 103)
        by_depth(axes, "% of the examples", "segment")
        curves.legend(figure, axes)

    values = "; ".join(
        f"{name}: {pieces.percent(shares[0])} at segment 1, {pieces.percent(shares[-1])} at segment {segments[-1]}"
        for name, _, shares in series
    )
    return pieces.figure(picture(draw, f"Halting by segment. {values}."), "Halting by segment")


def _table(one: Answers) -> str:
    rows = [
        (str(segment), *(pieces.percent(share, 2) for share in shares))
        for segment, *shares in zip(
            range(1, len(one.halted) + 1), one.halted, one.right, one.solved, strict=True
        )
    ]  # fmt: skip
    return pieces.numbers(("segment", "halted by then", "right when halted", "solved then"), rows)
