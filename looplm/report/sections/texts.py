"""Texts that the model wrote, at one depth beside another."""

from collections.abc import Sequence
from html import escape

from looplm.metrics.sweep import Generation
from looplm.report import pieces
from looplm.report.found import Found


def texts(found: Found) -> str:
    """Return the section; nothing where nothing was written."""
    if found.sweep is None or not found.sweep.generations:
        return ""
    return pieces.section("Generated text", _side_by_side(found.sweep.generations))


def _side_by_side(generations: Sequence[Generation]) -> str:
    """Return the texts of each prompt next to each other, one a depth, whole."""
    parts = []
    for prompt in dict.fromkeys(generation.prompt for generation in generations):
        written = [(one.loops, one.text.removeprefix(prompt)) for one in generations if one.prompt == prompt]
        last_line = prompt.rpartition("\n")[2]  # which the texts go on with
        begun = f'<span class="soft">{escape(last_line)}</span>'
        cards = "\n".join(
            f'<div class="card"><h4>{pieces.count(loops, "loop")}</h4><pre>{begun}{escape(text)}</pre></div>'
            for loops, text in written
        )
        parts.append(f'<h3>Prompt</h3>\n<div class="card"><pre>{escape(prompt.rstrip())}</pre></div>\n')
        parts.append(f'<h3>What follows</h3>\n{_how(generations, prompt)}<div class="texts">\n{cards}\n</div>')
    return "\n".join(parts)


def _how(generations: Sequence[Generation], prompt: str) -> str:
    how = dict.fromkeys(one.sampling for one in generations if one.prompt == prompt and one.sampling)
    return pieces.paragraph(f"{'; '.join(how).capitalize()}.", "soft") if how else ""
