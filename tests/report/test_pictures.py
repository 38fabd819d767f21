"""Drawings take their colours and letters from the page, and say in words what they show."""

import re
from xml.etree import ElementTree as Tree

import numpy as np
import pytest
from matplotlib.figure import Figure

from looplm.report.colours import DARK, LIGHT, MAIN, NAMES, RAMP_STEPS, declarations, of_loop
from looplm.report.picture import Hints, picture
from tests.report.parsed import Page


def test_every_drawing_has_words_and_names_of_colours_alone(page: Page) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)
    assert len(drawings) == len(page.all("svg")) == len(page.pictures) == 30
    for drawing, words in zip(drawings, page.pictures, strict=True):
        assert len(words) > 30
        assert "var(--line)" in drawing
        assert not re.findall(r"#[0-9a-f]{6}", drawing)
        assert "font-family" not in drawing


def test_all_names_of_colours_are_given_for_light_and_dark(page: Page) -> None:
    used = set(re.findall(r"var\(--([\w-]+)\)", page.source)) - {"c", "l", "e"}
    assert used >= {"ink", "soft", "main", "ramp-0", f"ramp-{RAMP_STEPS - 1}"}
    assert LIGHT.keys() == DARK.keys()
    for dark in (False, True):
        assert used <= set(re.findall(r"--([\w-]+):", declarations(dark)))


def test_no_two_elements_have_one_id_and_no_reference_is_lost(page: Page) -> None:
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page.source)
    assert {name for pair in inside for name in pair if name} <= set(ids)


def test_a_pointer_is_told_the_value_of_every_marker() -> None:
    values = [3.0, 1.0, 2.0]

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        (line,) = axes.plot([1, 2, 3], values, "o-", color=MAIN)
        hints.add(line, [f"depth {depth}: {value}" for depth, value in enumerate(values, 1)])
        (bar,) = axes.bar(2, 1.0, color=of_loop(1, 3))
        hints.add(bar, ["a <bar>"])

    root = Tree.fromstring(picture(draw, "Three values & a bar").svg)
    assert root.get("aria-label") == "Three values & a bar"
    marks = {mark.find("title").text: mark for mark in root.iter("use") if mark.find("title") is not None}
    assert list(marks) == ["depth 1: 3.0", "depth 2: 1.0", "depth 3: 2.0"]
    heights = [float(mark.get("y")) for mark in marks.values()]
    assert np.argsort(heights).tolist() == [0, 2, 1], "a larger value is higher up"
    assert "a <bar>" in [title.text for title in root.iter("title")]
    assert f"var(--ramp-{(RAMP_STEPS - 1) // 2})" in Tree.tostring(root, encoding="unicode")


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_loops_go_along_the_ramp(count: int) -> None:
    steps = [int(NAMES[of_loop(index, count)].removeprefix("ramp-")) for index in range(count)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, RAMP_STEPS - 1 if count > 1 else 0)
