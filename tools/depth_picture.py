"""Takes the drawing of held-out loss by depth out of a run's report, as a file that stands alone.

    python -m tools.depth_picture runs/demo/run docs/demo_depth.svg

Its colours follow the screen, light or dark, as they do in the report.
"""

import re
import sys
from pathlib import Path

from looplm.report.colours import DARK, LIGHT
from looplm.report.found import read
from looplm.report.sections.depth import depth

SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def alone(section: str) -> str:
    """Returns the drawing of losses in a section of a report: light colours in place of their names, and a style sheet
    that exchanges them on a dark screen. Not every viewer knows custom properties."""
    (drawing,) = (svg for svg in re.findall(r"<svg.*?</svg>", section, re.S) if 'aria-label="Held-out loss' in svg)
    used = sorted(set(re.findall(r"(stroke|fill): var\(--([\w-]+)\)", drawing)))
    rules = [
        f'[style*="{kind}: {LIGHT[name]}"] {{ {kind}: {DARK[name]} !important; }}'
        for kind, name in used
        if LIGHT[name] != DARK[name]
    ]
    drawing = re.sub(r"var\(--([\w-]+)\)", lambda found: LIGHT[found[1]], drawing)
    style = (
        f"svg {{ background: {LIGHT['card']}; font-family: system-ui, sans-serif; }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ background: {DARK['card']}; }} {' '.join(rules)} }}"
    )
    opening, rest = drawing.split(">", 1)
    return f"{opening.replace('<svg', f'<svg {SPACES}')}><style>{style}</style>{rest}\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(alone(depth(read(Path(sys.argv[1])))))
