"""A held-out text, token by token: what depth changes, how hard a token is, and where it leaves."""

from html import escape

import numpy as np

from looplm.metrics.sweep import Sample
from looplm.report import pieces
from looplm.report.found import Found

STRONGEST = 0.6
"""Opacity of the ground at most, so that the text stays legible."""
NEVER_BREAKS = "\u00a0"


def tokens(found: Found) -> str:
    """Return the section; nothing without a sample."""
    sweep = found.sweep
    if sweep is None or sweep.sample is None or not sweep.sample.pieces:
        return ""
    told = (
        "Point at a token, or tap it, to see its loss at every depth. What is said of a token is how it was predicted "
    )
    told += "from those before it."
    parts = [pieces.paragraph(told, "soft"), _heat(sweep.sample, sweep.trained_depth), _numbers(sweep.sample)]
    return pieces.section("Held-out text, token by token", *parts)


def _heat(sample: Sample, trained_depth: int) -> str:
    """Return the text with switches between its colourings; the first that there is is shown."""
    change_T, loss_T = _changes(sample, trained_depth), _losses(sample, trained_depth)
    loops = max([trained_depth, *(sample.exit_depth or [])])
    scale = float(np.quantile(np.abs(change_T), 0.98)) or 1.0 if change_T is not None else 1.0
    views = []
    if change_T is not None:
        first, last = _ends(sample, trained_depth)
        key = "".join(
            f'<i class="{kind}" style="--c:{strength}">{sign}{scale * share:.2f}</i>'
            for kind, sign, strength, share in (
                ("", "-", STRONGEST, 1), ("", "-", STRONGEST / 2, 0.5), ("worse", "+", STRONGEST / 2, 0.5),
                ("worse", "+", STRONGEST, 1),
            )
        )  # fmt: skip
        told = f"nats from depth {first} to {last}: green falls, red rises"
        views.append(("change", "Change by depth", f"{key} {told}"))
    if loss_T is not None:
        key = "".join(f'<i style="--l:{_of_loss(nats)}">{nats}</i>' for nats in (0, 2, 4, 6, 8))
        views.append(("loss", "Loss", f"{key} nats"))
    if sample.exit_depth:
        key = "".join(f'<i style="--e:{_of_exit(loop, loops)}">{loop}</i>' for loop in range(1, loops + 1))
        views.append(("exit", "Exit", f"predicted after loop {key}"))
    switches = "".join(
        f'<input type="radio" name="heat" id="heat-{name}"{" checked" * (index == 0)}>'
        f'<label for="heat-{name}">{title}</label>'
        for index, (name, title, _) in enumerate(views)
    )
    keys = "".join(f'<div class="key {name}">{key}</div>' for name, _, key in views)
    spans = "".join(
        _span(
            sample,
            at,
            None if change_T is None else change_T[at] / scale,
            None if loss_T is None else loss_T[at],
            loops,
        )
        for at in range(len(sample.pieces))
    )
    return f'<div class="card heat">{switches}{keys}<div class="tokens">{spans}</div></div>'


def _span(sample: Sample, at: int, change: float | None, loss: float | None, loops: int) -> str:
    piece = sample.pieces[at]
    marks = {"c": 0.0 if change is None else STRONGEST * min(1.0, abs(change)), "l": _of_loss(loss)}
    if sample.exit_depth:
        marks["e"] = _of_exit(sample.exit_depth[at], loops)
    style = ";".join(f"--{name}:{float(value):.2f}" for name, value in marks.items())
    kinds = ["worse"] * bool(change is not None and change > 0) + ["end"] * piece.startswith("\n")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    # Not among the tab stops: hundreds of them would stand between a reader and the next section.
    return (
        f'<span{kind} tabindex="-1" style="{style}" data-t="{escape(_told(sample, at, loops))}">{escape(piece)}</span>'
    )


def _told(sample: Sample, at: int, loops: int) -> str:
    """Say all there is about a token."""
    lines = [visible(sample.pieces[at])]
    if sample.exit_depth:
        loss = sample.loss[at] if sample.loss else None
        there = f", loss {pieces.number(loss)} nats there" if loss is not None else ""
        lines[0] += f"   predicted after loop {sample.exit_depth[at]} of {loops}{there}"
    if sample.loss_by_depth:
        told = [
            f"depth{NEVER_BREAKS}{depth}:{NEVER_BREAKS}{pieces.number(losses[at], 2)}"
            for depth, losses in zip(sample.depths, sample.loss_by_depth, strict=True)
        ]
        lines.append("   ".join(told))
    return "\n".join(lines)


def visible(piece: str) -> str:
    """Return a token in quotes, with its white space spelled out."""
    return "'" + piece.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") + "'"


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


def _ends(sample: Sample, trained_depth: int) -> tuple[int, int]:
    """Return the depths that are compared: the shallowest, and the trained one or the deepest before it."""
    return min(sample.depths), max(x for x in sample.depths if x <= max(trained_depth, min(sample.depths)))


def _losses(sample: Sample, trained_depth: int) -> np.ndarray | None:
    """Return the loss of every token at the trained depth, or at its exit where no other is known."""
    if sample.loss_by_depth:
        return np.array(sample.loss_by_depth[sample.depths.index(_ends(sample, trained_depth)[1])])
    if sample.loss:
        return np.array([0.0 if loss is None else loss for loss in sample.loss])
    return None


def _changes(sample: Sample, trained_depth: int) -> np.ndarray | None:
    if not sample.loss_by_depth:
        return None
    first, last = (np.array(sample.loss_by_depth[sample.depths.index(x)]) for x in _ends(sample, trained_depth))
    return last - first if len(sample.depths) > 1 else None


def _of_loss(nats: float | None) -> float:
    """Return the opacity for a loss: full from 8 nats on, a token in 3000."""
    return 0.0 if nats is None else round(STRONGEST * min(1.0, max(0.0, nats / 8)), 2)


def _of_exit(loop: int, loops: int) -> float:
    """Return the opacity for an exit: visible from the first loop."""
    return round(0.06 + (STRONGEST - 0.06) * (min(loop, loops) - 1) / max(1, loops - 1), 2)
