"""A report fits a phone and a desk: nothing is wider than the window, and no letters lie on others.

Needs Chromium on the PATH; the page itself runs no script, so a copy of it gets one that measures.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.report.parsed import Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>
addEventListener('load', () => {
  for (const folded of document.querySelectorAll('details')) folded.open = OPEN;
  const width = document.documentElement.clientWidth, wide = [], overlapping = [];
  const scrolls = (one) => one && (getComputedStyle(one).overflowX != 'visible' || scrolls(one.parentElement));
  for (const one of document.body.querySelectorAll('*')) {
    const box = one.getBoundingClientRect();
    if ((box.right > width + 0.5 || box.left < -0.5) && !scrolls(one.parentElement))
      wide.push(`${one.tagName}.${one.getAttribute('class')} ${box.left} to ${box.right}`);
  }
  for (const plot of document.querySelectorAll('svg')) {
    const frame = plot.getBoundingClientRect(), texts = [...plot.querySelectorAll('text')];
    const boxes = texts.map((text) => text.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (frame.width && (a.left < frame.left - 1 || a.right > frame.right + 1)) wide.push(texts[i].textContent);
      boxes.forEach((b, j) => {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (i < j && across > 1 && down > 3)
          overlapping.push(`${plot.getAttribute('aria-label')}: ${texts[i].textContent} on ${texts[j].textContent}`);
      });
    });
  }
  const letters = [...document.querySelectorAll('svg text')].map((text) => text.getBoundingClientRect().height);
  const page = document.documentElement.scrollWidth;
  parent.postMessage(JSON.stringify({width, page, wide, overlapping, plots: document.querySelectorAll('svg').length,
    letters: Math.min(...letters.filter((height) => height > 0))}), '*');
});
</script>"""
FRAME = """<!DOCTYPE html><pre id="found"></pre><script>
addEventListener('message', (event) => { document.getElementById('found').textContent = event.data; });
</script><iframe width="WIDTH" height="3000" style="border: 0" src="page.html"></iframe>"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]


def measured(source: str, folder: Path, width: int, unfolded: bool) -> dict[str, Any]:
    """What the browser finds in a window of so many pixels, which it makes no smaller than 500 but for a frame."""
    assert BROWSER is not None
    source = re.sub(r"<meta http-equiv[^>]*>", "", source)
    (folder / "page.html").write_text(
        source.replace("</body>", MEASURE.replace("OPEN", str(unfolded).lower()) + "</body>")
    )
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,3200", "--dump-dom"]
    address = (folder / "frame.html").as_uri()
    shown = subprocess.run(
        [*words, "--virtual-time-budget=5000", address], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)
    assert found, shown[:500]
    return json.loads(unescape(found[1]))


@pytest.mark.parametrize("unfolded", [False, True])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_too_wide_and_nothing_overlaps(page: Page, tmp_path: Path, width: int, unfolded: bool) -> None:
    found = measured(page.source, tmp_path, width, unfolded)
    assert found["plots"] == len(page.pictures)
    assert found["width"] <= width
    assert found["page"] == found["width"], "the page scrolls sideways"
    assert found["wide"] == []
    assert found["overlapping"] == []
    assert found["letters"] >= 9.5, "pixels; smaller letters are not legible"


def test_what_is_too_wide_is_found(page: Page, tmp_path: Path) -> None:
    broken = page.source.replace("<h2>", '<div class="broken" style="width: 500px">x</div><h2>', 1)
    found = measured(broken, tmp_path, 390, unfolded=False)
    assert found["page"] > found["width"]
    assert found["wide"][0].startswith("DIV.broken")
