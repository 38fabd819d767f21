"""A held-out text, token by token: what depth changes, how hard a token is, and where it leaves."""

from looplm.metrics.sweep import Sample
from looplm.report import pieces
from looplm.report.found import Found
from looplm.report.sections.heat import coloured, visible


def tokens(found: Found) -> str:
    """Return the section; nothing without a sample."""
    sweep = found.sweep
    if sweep is None or sweep.sample is None or not sweep.sample.pieces:
        return ""
    told = (
        "Point at a token, or tap it, to see its loss at every depth. What is said of a token is how it was predicted "
    )
    told += "from those before it."
    shown = coloured(sweep.sample, sweep.trained_depth)
    return pieces.section(
        "Held-out text, token by token", pieces.paragraph(told, "soft"), shown, _numbers(sweep.sample)
    )


def _numbers(sample: Sample) -> str:
    headers = ["token", *(["exit after loop", "loss there"] if sample.exit_depth else [])]
    headers += [f"depth {depth}" for depth in sample.depths]
    rows = []
    for at, piece in enumerate(sample.pieces):
        row = [visible(piece)]
        if sample.exit_depth:
            row += [str(sample.exit_depth[at]), pieces.number(sample.loss[at] if sample.loss else None)]
        rows.append([*row, *(pieces.number(losses[at]) for losses in sample.loss_by_depth)])
    table = pieces.table(headers, rows, kind="named", box="tall", caption="Losses in nats.")
    return pieces.collapsed(f"Numbers of all {len(rows):,} tokens", table)
