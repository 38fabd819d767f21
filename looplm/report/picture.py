"""From a matplotlib figure to a drawing inside the page: SVG that takes its colours and its letters from the page.

The object interface of matplotlib is used, never pyplot, so nothing global changes and no display is needed.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Tree

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from looplm.report.colours import GRID, INK, NAMES, SOFT

WIDTH, HEIGHT = 360, 236
"""Units; the page shows them at about that many pixels, on a phone and on a large screen, so that letters are legible
on both."""
STYLE = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 11,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.color": GRID,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "path.simplify_threshold": 0.4,
}


@dataclass(frozen=True)
class Picture:
    """An SVG element, whose label is the text for those who cannot see it."""

    svg: str
    alt: str


class Hints:
    """What is shown where the pointer rests: a text for every marker of a line, or for a bar."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}

    def add(self, artist: Artist, texts: Sequence[str]) -> None:
        """Give a line with markers a text a marker, or any other artist one text."""
        name = f"hint-{len(self.texts)}"
        artist.set_gid(name)
        self.texts[name] = list(texts)


def picture(
    draw: Callable[[Figure, Hints], None], alt: str, *, height: float = HEIGHT, width: float = WIDTH
) -> Picture:
    """Return what `draw` puts on a figure of so many units."""
    return Picture(_render(draw, alt, width, height), alt)


def _render(draw: Callable[[Figure, Hints], None], alt: str, width: float, height: float) -> str:
    hints, out = Hints(), io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained", facecolor="none")
        draw(figure, hints)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
    return inside_a_page(out.getvalue(), alt, hints.texts)


def inside_a_page(svg: str, alt: str, hints: dict[str, list[str]]) -> str:
    """Return the element alone: colours by name, the page's letters, and ids that no other drawing of a page has."""
    root = Tree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.attrib[name.rpartition("}")[2]] = element.attrib.pop(name)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    for name, texts in hints.items():
        group = next(element for element in root.iter() if element.get("id") == name)
        _explain(group, texts)
    _rename(root, f"p{hashlib.sha256(alt.encode()).hexdigest()[:8]}-")
    for element in root.iter():
        if style := element.get("style"):
            style = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", style)
            style = re.sub(r" ?font-family: [^;]*;?", "", style)
            element.set("style", re.sub(r"#[0-9a-f]{6}", lambda found: _named(found[0]), style))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": alt}
    return Tree.tostring(root, encoding="unicode", short_empty_elements=True)


def _explain(group: Tree.Element, texts: list[str]) -> None:
    marks = list(group.iter("use")) or [group]
    for mark, text in zip(marks, texts, strict=False):
        title = Tree.SubElement(mark, "title")
        title.text = text


def _rename(root: Tree.Element, prefix: str) -> None:
    """Keep ids that the drawing itself refers to, under names of its own."""
    text = Tree.tostring(root, encoding="unicode")
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    kept = {name for pair in used for name in pair if name}
    for element in root.iter():
        if (name := element.get("id")) is not None:
            element.attrib.pop("id")
            if name in kept:
                element.set("id", prefix + name)
        for key, value in element.attrib.items():
            if value.startswith("#") and value[1:] in kept:
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))


def _named(colour: str) -> str:
    return f"var(--{NAMES[colour]})" if colour in NAMES else colour
