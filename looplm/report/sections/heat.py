"""A text whose tokens are coloured by a number of theirs, in several ways; style rules show one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from looplm.metrics.sweep import Sample
from looplm.report import pieces

FAINTEST, STRONGEST = 0.05, 0.6
"""Opacity of the ground at least, so that there is one, and at most, so that the text stays legible."""
HARD_NATS = 8
"""The loss from which on a token is coloured as strongly as can be: one in 3000."""
NEVER_BREAKS = "\u00a0"


@dataclass(frozen=True)
class View:
    """One way to colour the text."""

    name: str
    """As the style sheet knows it."""
    title: str
    letter: str
    """Of the property that holds the opacity."""
    opacity_T: np.ndarray
    worse_T: np.ndarray
    """Which tokens get the colour for worse; bool."""
    key: str
    """What the colours mean; HTML."""


def coloured(sample: Sample, trained_depth: int) -> str:
    """Return the text with switches between its views, of which the first is shown."""
    views = [view for make in (_change, _loss, _exit) if (view := make(sample, trained_depth))]
    switches = "".join(
        f'<input type="radio" name="heat" id="heat-{view.name}"{" checked" * (view is views[0])}>'
        f'<label for="heat-{view.name}">{view.title}</label>'
        for view in views
    )
    keys = "".join(f'<div class="key {view.name}">{view.key}</div>' for view in views)
    spans = "".join(_span(sample, at, views, trained_depth) for at in range(len(sample.pieces)))
    return f'<div class="card heat">{switches}{keys}<div class="tokens">{spans}</div></div>'


def ends(sample: Sample, trained_depth: int) -> tuple[int, int]:
    """Return the depths that are compared: the shallowest, and the trained one or the deepest before it."""
    shallowest = min(sample.depths)
    return shallowest, max(depth for depth in sample.depths if depth <= max(trained_depth, shallowest))


def visible(piece: str) -> str:
    """Return a token in quotes, with its white space spelled out."""
    return "'" + piece.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") + "'"


def _change(sample: Sample, trained_depth: int) -> View | None:
    if len(sample.depths) < 2:
        return None
    first, last = ends(sample, trained_depth)
    before_T, after_T = (np.array(sample.loss_by_depth[sample.depths.index(depth)]) for depth in (first, last))
    with np.errstate(invalid="ignore"):  # of losses that are no numbers
        change_T = after_T - before_T
    known_T = np.abs(change_T[np.isfinite(change_T)])
    most = float(np.quantile(known_T, 0.98)) or 1.0 if len(known_T) else 1.0
    worse, half = ' class="worse"', STRONGEST / 2
    steps = (
        ("", "-", STRONGEST, most),
        ("", "-", half, most / 2),
        (worse, "+", half, most / 2),
        (worse, "+", STRONGEST, most),
    )
    key = "".join(f'<i{kind} style="--c:{opacity}">{sign}{nats:.2f}</i>' for kind, sign, opacity, nats in steps)
    key += f" nats from depth {first} to {last}: green falls, red rises"
    opacity_T = STRONGEST * np.minimum(1.0, np.nan_to_num(np.abs(change_T) / most))
    return View("change", "Change by depth", "c", opacity_T, change_T > 0, key)


def _loss(sample: Sample, trained_depth: int) -> View | None:
    """Colour by the loss at the trained depth, or at the exit where no other is known."""
    if sample.loss_by_depth:
        loss_T = np.array(sample.loss_by_depth[sample.depths.index(ends(sample, trained_depth)[1])])
    elif sample.loss:
        loss_T = np.array([0.0 if loss is None else loss for loss in sample.loss])
    else:
        return None

    def opacity(nats: Any) -> Any:
        return STRONGEST * np.clip(np.nan_to_num(nats / HARD_NATS, nan=1.0), 0.0, 1.0)

    steps = range(0, HARD_NATS + 1, 2)
    key = "".join(f'<i style="--l:{opacity(nats):.2f}">{nats}</i>' for nats in steps) + " nats"
    return View("loss", "Loss", "l", opacity(loss_T), np.zeros(len(loss_T), bool), key)


def _exit(sample: Sample, trained_depth: int) -> View | None:
    if not sample.exit_depth:
        return None
    exit_T = np.array(sample.exit_depth)
    loops = range(int(exit_T.min()), int(exit_T.max()) + 1)

    def opacity(loop: Any) -> Any:
        return FAINTEST + (STRONGEST - FAINTEST) * (loop - loops[0]) / max(1, loops[-1] - loops[0])

    key = "".join(f'<i style="--e:{opacity(loop):.2f}">{loop}</i>' for loop in loops)
    return View("exit", "Exit", "e", opacity(exit_T), np.zeros(len(exit_T), bool), f"predicted after loop {key}")


def _span(sample: Sample, at: int, views: Sequence[View], trained_depth: int) -> str:
    piece = sample.pieces[at]
    style = ";".join(f"--{view.letter}:{view.opacity_T[at]:.2f}" for view in views)
    kinds = ["worse"] * any(view.worse_T[at] for view in views) + ["end"] * piece.startswith("\n")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    told = escape(_told(sample, at, trained_depth))
    # Not among the tab stops: hundreds of them would stand between a reader and the next section.
    return f'<span{kind} tabindex="-1" style="{style}" data-t="{told}">{escape(piece)}</span>'


def _told(sample: Sample, at: int, trained_depth: int) -> str:
    """Say all there is about a token."""
    lines = [visible(sample.pieces[at])]
    if sample.exit_depth:
        loss = sample.loss[at] if sample.loss else None
        there = f", loss {pieces.number(loss)} nats there" if loss is not None else ""
        loops = max(trained_depth, *sample.exit_depth)
        lines[0] += f"   predicted after loop {sample.exit_depth[at]} of {loops}{there}"
    if sample.loss_by_depth:
        told = [
            f"depth{NEVER_BREAKS}{depth}:{NEVER_BREAKS}{pieces.number(losses[at], 2)}"
            for depth, losses in zip(sample.depths, sample.loss_by_depth, strict=True)
        ]
        lines.append("   ".join(told))
    return "\n".join(lines)
