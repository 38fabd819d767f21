"""The pieces of HTML that the report is put together from. Every text that enters here is escaped here."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from looplm.metrics.sweep import Generation, Sample
from looplm.report.picture import Picture
from looplm.report.verdict import Verdict


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals and thousands separated; says so when there is none."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if math.isfinite(value) else "not finite"


def count(how_many: int, noun: str) -> str:
    return f"{how_many:,} {noun}" if how_many == 1 else f"{how_many:,} {noun}s"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def verdict_list(verdicts: Sequence[Verdict]) -> str:
    items = "\n".join(f'<li class="{verdict.tone}">{escape(verdict.text)}</li>' for verdict in verdicts)
    return f'<ul class="verdicts">\n{items}\n</ul>'


def tiles(facts: Mapping[str, str]) -> str:
    """The numbers to see first, each with its name."""
    items = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="tiles">\n{items}\n</dl>'


def grid(*parts: str) -> str:
    """Parts side by side where the screen is wide enough."""
    return '<div class="grid">\n' + "\n".join(part for part in parts if part) + "\n</div>" if any(parts) else ""


def figure(picture: Picture | None, caption: str) -> str:
    if picture is None:
        return ""
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{picture.dark}">'
    image = f'<img src="{picture.light}" alt="{escape(picture.alt)}">'
    return f"<figure><picture>{dark}{image}</picture><figcaption>{escape(caption)}</figcaption></figure>"


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    marked: int | None = None,
    kind: str = "",
) -> str:
    """A table in a card that scrolls sideways on a narrow screen; the row of index `marked` is bold."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f'<tr class="mark">{cells}</tr>' if index == marked else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="card wide"><table class="{kind}">{told}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def collapsed(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def coloured_text(sample: Sample, num_loops: int) -> str:
    """The sample with a darker ground for a later exit; a tooltip gives loop and loss of each token."""
    losses = sample.loss or [None] * len(sample.pieces)
    spans = []
    for piece, loop, loss in zip(sample.pieces, sample.exit_depth or (), losses, strict=True):
        told = f"predicted after loop {loop} of {num_loops}" + (
            f", loss {number(loss)} nats" if loss is not None else ""
        )
        spans.append(f'<span style="--a:{_strength(loop, num_loops)}" title="{told}">{escape(piece)}</span>')
    legend = "".join(
        f'<span style="--a:{_strength(loop, num_loops)}">loop {loop}</span>' for loop in range(1, num_loops + 1)
    )
    text = "".join(spans)
    return f'<div class="card"><div class="legend">predicted after {legend}</div><div class="tokens">{text}</div></div>'


def side_by_side(generations: Sequence[Generation]) -> str:
    """The texts of each prompt next to each other, one a depth."""
    parts = []
    for prompt in dict.fromkeys(generation.prompt for generation in generations):
        texts = [(one.loops, one.text.removeprefix(prompt)) for one in generations if one.prompt == prompt]
        cards = "\n".join(
            f'<div class="card"><h4>{count(loops, "loop")}</h4><pre>{escape(text)}</pre></div>' for loops, text in texts
        )
        parts.append(f'<h3>Prompt</h3>\n<pre>{escape(prompt)}</pre>\n<div class="texts">\n{cards}\n</div>')
    return "\n".join(parts)


def _strength(loop: int, num_loops: int) -> str:
    """Opacity of the ground: visible from the first loop, and never so strong that the text is hard to read."""
    share = (min(loop, num_loops) - 1) / max(1, num_loops - 1)
    return f"{0.06 + 0.5 * share:.2f}"
