"""The colours of pages and drawings: names that the page gives a value, one for light and one for dark screens.

A drawing is made once, with a stand-in for every name; `picture` puts the names in their place, so that the screen
decides. Loops have a ramp of their own, from `viridis`: where it is read as an order, shallow to deep.
"""

import matplotlib as mpl
from matplotlib.colors import to_hex

INK, SOFT, GRID, CARD = "#010101", "#020202", "#030303", "#040404"
MAIN, ACCENT, GOOD, BAD = "#050505", "#060606", "#070707", "#080808"
"""Stand-ins: text, lesser text, lines, ground; the curve, what it is compared with, better, worse."""
SERIES = ("#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c", "#0d0d0d", "#0e0e0e")
"""Curves that are told apart."""
CALIBRATED = SERIES[3]
RAMP_STEPS = 33
NAMES = {INK: "ink", SOFT: "soft", GRID: "line", CARD: "card", MAIN: "main", ACCENT: "accent", GOOD: "good", BAD: "bad"}
NAMES |= {stand_in: f"series-{index}" for index, stand_in in enumerate(SERIES)}
NAMES |= {f"#0f0f{step:02x}": f"ramp-{step}" for step in range(RAMP_STEPS)}

LIGHT = {
    "page": "#f3f5f8", "card": "#ffffff", "ink": "#1b2330", "soft": "#566175", "line": "#dde2ea", "main": "#2563eb",
    "accent": "#c2410c", "good": "#17753c", "bad": "#b3331a", "neutral": "#64748b", "link": "#1d4ed8",
    "heat": "37 99 235", "better": "22 128 61", "worse": "200 60 20",
    "series-0": "#2563eb", "series-1": "#c2410c", "series-2": "#0f766e", "series-3": "#9333ea", "series-4": "#a16207",
    "series-5": "#be185d",
}  # fmt: skip
DARK = {
    "page": "#11151c", "card": "#1a202a", "ink": "#e4e8ef", "soft": "#a2adbf", "line": "#333c4a", "main": "#7cb0ff",
    "accent": "#ff9d5c", "good": "#62d08e", "bad": "#ff9177", "neutral": "#8fa0ba", "link": "#8ab8ff",
    "heat": "92 148 255", "better": "64 190 110", "worse": "255 110 80",
    "series-0": "#7cb0ff", "series-1": "#ff9d5c", "series-2": "#4fd1c0", "series-3": "#c69bff", "series-4": "#e0bb4a",
    "series-5": "#ff8fc4",
}  # fmt: skip


def of_loop(index: int, count: int) -> str:
    """The stand-in of one of `count` loops, index from 0."""
    return f"#0f0f{round((RAMP_STEPS - 1) * index / max(1, count - 1)):02x}"


def declarations(dark: bool) -> str:
    """All names with their values, as custom properties of CSS."""
    low, high = (0.28, 1.0) if dark else (0.0, 0.82)  # what stands out from the ground
    steps = [low + (high - low) * step / (RAMP_STEPS - 1) for step in range(RAMP_STEPS)]
    ramp = {f"ramp-{step}": to_hex(mpl.colormaps["viridis"](share)) for step, share in enumerate(steps)}
    return " ".join(f"--{name}: {value};" for name, value in ((DARK if dark else LIGHT) | ramp).items())
