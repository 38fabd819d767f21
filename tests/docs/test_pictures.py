"""Pictures of the pages are small, stand alone, and are legible on light and on dark screens."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from looplm.report.colours import DARK, LIGHT
from tools.depth_picture import alone

PICTURES = sorted((Path(__file__).parents[2] / "docs").glob("*.svg"))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_stands_alone(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 50_000
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label"), "a text for those who cannot see it"
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"var\(|https?://(?!www\.w3\.org)|<script|<image", text) == []


def test_colours_of_a_report_become_those_of_the_screen() -> None:
    other = '<svg aria-label="Accuracy"></svg>'
    mine = '<svg aria-label="Held-out loss by depth"><path style="stroke: var(--main); fill: none"/></svg>'
    drawing = alone(f"<p>{other}{mine}</p>")
    assert f'<path style="stroke: {LIGHT["main"]}; fill: none"/>' in drawing
    dark = drawing.partition("prefers-color-scheme: dark")[2]
    assert f'[style*="stroke: {LIGHT["main"]}"] {{ stroke: {DARK["main"]} !important; }}' in dark
    assert "Accuracy" not in drawing
    ElementTree.fromstring(drawing)
