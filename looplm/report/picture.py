"""From a matplotlib figure to a picture inside the page: the same drawing twice, for light and for dark screens.

The object interface of matplotlib is used, never pyplot, so nothing global changes and no display is needed.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH_INCHES, DOTS_PER_INCH = 5.6, 180
"""About 1000 pixels; the letters are large because a phone shows them at a third of that."""


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing. The background stays transparent: the page decides."""

    ink: str
    grid: str
    main: str
    accent: str
    depth_range: tuple[float, float]
    """The part of the colour map for depths that stands out from the background."""

    def of_depth(self, index: int, count: int) -> Any:
        """The colour of one of `count` depths, index from 0."""
        low, high = self.depth_range
        return mpl.colormaps["viridis"](low + (high - low) * index / max(1, count - 1))


LIGHT = Theme(ink="#27303f", grid="#dfe3ea", main="#2563eb", accent="#d9480f", depth_range=(0.0, 0.85))
DARK = Theme(ink="#d7dde8", grid="#39424f", main="#7cb0ff", accent="#ff9d5c", depth_range=(0.25, 1.0))


@dataclass(frozen=True)
class Picture:
    """PNG data URIs for both kinds of screen, and the text for those who cannot see them."""

    light: str
    dark: str
    alt: str


def picture(draw: Callable[[Figure, Theme], None], alt: str, *, height_inches: float = 3.2) -> Picture:
    """Returns what `draw` puts on a figure, once in each theme."""
    return Picture(_render(draw, LIGHT, height_inches), _render(draw, DARK, height_inches), alt)


def _render(draw: Callable[[Figure, Theme], None], theme: Theme, height_inches: float) -> str:
    style = {
        "font.size": 11,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "lines.linewidth": 1.8,
    }
    with mpl.rc_context(style):
        figure = Figure(
            figsize=(WIDTH_INCHES, height_inches), dpi=DOTS_PER_INCH, layout="constrained", facecolor="none"
        )
        draw(figure, theme)
        out = io.BytesIO()
        # No "Software" entry: the same numbers give the same bytes with every release of matplotlib that draws alike.
        FigureCanvasAgg(figure).print_png(out, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
