"""Links between the pages lead to files and headings that are there."""

import re
from pathlib import Path

import pytest

from tools.page_commands import ROOT, pages

PAGES = [*pages(), ROOT / "CHANGELOG.md"]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)", outside, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead(page: Path, text: str) -> list[str]:
    """Targets of the text's links that are not there; addresses of the web are not asked."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text):
        path, _, heading = "".join(target).partition("#")
        if re.match(r"https?:|mailto:", path):
            continue
        file = page.parent / path if path else page
        if not file.exists() or (heading and heading not in anchors(file)):
            found.append("".join(target))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    assert dead(page, page.read_text()) == []


def test_a_dead_link_is_found() -> None:
    text = '[a](docs/nothing.md) [b](docs/data.md#nothing) [c](docs/data.md#answers-to-learn) <img src="no.svg">'
    assert dead(ROOT / "README.md", text) == ["docs/nothing.md", "docs/data.md#nothing", "no.svg"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text())
        waiting += {path for link in links if (path := (page.parent / link).resolve()).exists()} - reached
    assert {page.resolve() for page in PAGES} - reached == set()
