"""Draws the parts of looplm and who imports whom, from the files themselves, into docs/architecture.md.

    python -m tools.draw_architecture

The picture is text (Mermaid, which GitHub shows as a drawing) between two marks of that file; a test draws it again.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.layers import FILES, LAYERS, imports, module_name, part, top

DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by python -m tools.draw_architecture -->\n", "<!-- end of the drawing -->\n"

Graph = dict[str, set[str]]
"""What every part imports."""


def parts() -> Graph:
    """Gathers the imports of all files by part of the package."""
    graph: Graph = {name: set() for names in LAYERS for name in names}
    for path in FILES:
        importer = part(module_name(path))
        graph[importer] |= {part(module) for _, module in imports(path) if top(module) == "looplm"} - {importer}
    return graph


def below(graph: Graph, name: str) -> set[str]:
    """Everything that a part reaches by imports of imports; itself too, if they go in a circle."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def reduced(graph: Graph) -> Graph:
    """Leaves out the imports that follow from others. Raises ValueError if imports go in a circle."""
    under = {name: below(graph, name) for name in graph}
    if circle := sorted(name for name in graph if name in under[name]):
        raise ValueError(f"imports go in a circle between {', '.join(circle)}")
    return {
        name: {to for to in targets if not any(to in under[other] for other in targets)}
        for name, targets in graph.items()
    }


def drawn(graph: Graph) -> str:
    """Writes the picture: a box a layer, from the top, and an arrow for every import that does not follow from others;
    then what every part is for, by its own words."""

    def lines() -> Iterator[str]:
        yield "```mermaid\nflowchart TD"
        for number, names in enumerate(LAYERS):
            yield f'    subgraph layer{number}[" "]'
            yield from (f'        {short(name)}["{short(name)}"]' for name in sorted(names))
            yield "    end"
        for importer, targets in sorted(reduced(graph).items()):
            yield from (f"    {short(importer)} --> {short(imported)}" for imported in sorted(targets))
        yield "```\n\n| part | is for |\n|---|---|"
        for names in LAYERS:
            yield from (f"| `{name}` | {purpose(name)} |" for name in sorted(names))
        yield ""

    return "\n".join(lines())


def short(name: str) -> str:
    return name.removeprefix("looplm.")


def purpose(name: str) -> str:
    """The first sentence of a part's docstring."""
    (path,) = (path for path in FILES if module_name(path) == name)
    paragraph = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s", paragraph)[0]


def redrawn(text: str) -> str:
    """Puts the picture of today between the marks of a text."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + drawn(parts()) + END + rest.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(redrawn(DOCUMENT.read_text()))
    print(f"drawn into {DOCUMENT}")
