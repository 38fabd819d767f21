"""The pieces of HTML that the report is put together from. Every text that enters here is escaped here."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from looplm.report.picture import Picture
from looplm.report.verdict import Tone, Verdict, decimals


class Cell(NamedTuple):
    """A cell of a table that says whether its number is good or bad news."""

    text: str
    tone: Tone = "neutral"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals and thousands separated; say so when there is none."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if math.isfinite(value) else "not finite"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share of one as a percentage."""
    return "-" if share is None else f"{number(100 * share, digits)} %"


def signed(value: float, digits: int = 4) -> str:
    """Return a difference with its sign."""
    return f"{value:+,.{digits}f}" if math.isfinite(value) else "not finite"


def interval(low: float, high: float, digits: int = 4) -> str:
    """Return the ends of an interval of differences."""
    return f"{signed(low, digits)} to {signed(high, digits)}"


def change(value: float, low: float, high: float) -> tuple[Cell, Cell]:
    """Return the cells of a change of the loss and of its interval, which is news where it leaves out zero."""
    digits = max(4, decimals(high - low))
    tone: Tone = "good" if high < 0 else "bad" if low > 0 else "neutral"
    return Cell(signed(value, digits), tone), Cell(interval(low, high, digits))


def count(how_many: int, noun: str) -> str:
    """Return `1 loop`, `2 loops`."""
    return f"{how_many:,} {noun}" if how_many == 1 else f"{how_many:,} {noun}s"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; kind `soft` is for what is less important."""
    return f'<p class="{kind}">{words(text)}</p>' if kind else f"<p>{words(text)}</p>"


def words(text: str) -> str:
    """Return a sentence whose words in backticks are set as code, and in which no line begins with a percent sign."""
    return re.sub(r"(?<=\d) %", "&nbsp;%", re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))


def section(title: str, *parts: str) -> str:
    """Return a section with an anchor after its title."""
    content = "\n".join(part for part in parts if part)
    return f'<section id="{_anchor(title)}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'


def navigation(sections: Sequence[str]) -> str:
    """Return links to sections."""
    titles = re.findall(r"<section id=\"([^\"]+)\">\n<h2>(.*?)</h2>", "\n".join(sections))
    return "<nav>" + "\n".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in titles) + "</nav>"


def verdict_list(verdicts: Sequence[Verdict]) -> str:
    """Return the sentences, each with its tone at its side."""
    items = "\n".join(f'<li class="{verdict.tone}">{words(verdict.text)}</li>' for verdict in verdicts)
    return f'<ul class="verdicts">\n{items}\n</ul>'


def tiles(facts: Mapping[str, str]) -> str:
    """Return the numbers to see first, each with its name."""
    items = "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="tiles">\n{items}\n</dl>'


def grid(*parts: str) -> str:
    """Return parts side by side where the screen is wide enough."""
    return '<div class="grid">\n' + "\n".join(part for part in parts if part) + "\n</div>" if any(parts) else ""


def pair(first: str, second: str) -> str:
    """Return a figure with a table at its side, twice as wide; below it on a narrow screen."""
    return f'<div class="pair">\n{first}\n{second}\n</div>'


def figure(picture: Picture | None, title: str, caption: str = "", numbers: str = "") -> str:
    """Return a drawing with what it shows, and its numbers to unfold."""
    if picture is None:
        return ""
    told = f"<figcaption>{words(caption)}</figcaption>" if caption else ""
    folded = f'<details class="numbers"><summary>Numbers</summary>{numbers}</details>' if numbers else ""
    return f"<figure><h3>{escape(title)}</h3>{picture.svg}{told}{folded}</figure>"


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    caption: str = "",
    marked: int | None = None,
    kind: str = "",
    box: str = "card",
) -> str:
    """Return a table that scrolls in its box on a narrow screen; the row of index `marked` is bold.

    box: kind of what is around it, with the caption; `tall` scrolls downwards too.
    """
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(_cell(cell) for cell in row)
        lines.append(f'<tr class="mark">{cells}</tr>' if index == marked else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    told = f'<p class="caption">{words(caption)}</p>' if caption else ""
    named = f' aria-label="{escape(caption)}"' if caption else ""
    return (
        f'<div class="{box}">{told}<div class="wide"><table class="{kind}"{named}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></div>"
    )


def numbers(headers: Sequence[str], rows: Sequence[Sequence[str | Cell]], caption: str = "") -> str:
    """Return the table below a drawing."""
    return table(headers, rows, caption=caption, box="tall")


def collapsed(title: str, content: str) -> str:
    """Return what is shown when it is asked for."""
    return f'<details class="box"><summary>{escape(title)}</summary>\n{content}\n</details>'


def missing(what: str, remedy: str) -> str:
    """Return the line that stands where numbers would."""
    return paragraph(f"{what}; {remedy}.", "soft")


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str) or cell.tone == "neutral":
        return f"<td>{escape(cell if isinstance(cell, str) else cell.text)}</td>"
    return f'<td class="{cell.tone}">{escape(cell.text)}</td>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
