"""Writes docs/configuration.md: every setting with its values, default and meaning, from the schema itself.

    python -m tools.configuration_reference

What stands above the mark in that file is written by hand; a test writes the rest again.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from looplm.config import schema
from looplm.config.schema.own import OrOwn

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- written by python -m tools.configuration_reference -->\n"
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "null": "`null`",
}
LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
HEAD = "| setting | values | default | meaning |\n|---|---|---|---|"
ROOT = "Run"

Node = dict[str, Any]
"""A piece of JSON Schema, as pydantic writes it."""


class Reference:
    """All classes of a run's settings, each written where it is first met."""

    def __init__(self) -> None:
        self.tree = schema.Run.model_json_schema()
        self.headings = {ROOT: "The run"}
        """Of the part that holds a class, by the class's name."""

    def lines(self) -> Iterator[str]:
        """Writes the settings of the run itself, then part after part."""
        yield from self.part("", [ROOT])

    def part(self, path: str, names: list[str]) -> Iterator[str]:
        """Writes one heading with the table of a section, or of the kinds of a choice; then the parts inside."""
        first = self.node(names[0])
        yield f"\n## {self.headings[names[0]]}\n"
        if self.kind(names[0]) is None:
            yield f"{one_line(first)}\n"
        yield HEAD
        inside = []
        for name in names:
            node, kind = self.node(name), self.kind(name)
            if kind is not None:
                yield f"| **`{kind}`** | | | {one_line(node)} |"
            for field, value in node["properties"].items():
                if field != "kind":
                    place = f"{path}.{field}" if path else field
                    new = list(self.unwritten(place, value))
                    yield self.row(place, name, field, value)
                    inside += [(place, group) for group in new]
        for place, group in inside:
            yield from self.part(place, group)

    def unwritten(self, place: str, value: Node) -> Iterator[list[str]]:
        """Gives headings to the classes of a setting that have none, and yields what is to stand under each."""
        new = [name for name in classes(value) if name not in self.headings]
        kinds = [name for name in new if self.kind(name) is not None]
        for name in new:
            listed = "items" in value or any("items" in form for form in forms(value))
            entry = listed and name not in kinds
            self.headings[name] = f"{name}, an entry of `{place}`" if entry else f"`{place}`"
        yield from ([kinds] if kinds else [])
        yield from ([name] for name in new if name not in kinds)

    def row(self, place: str, owner: str, field: str, value: Node) -> str:
        """One setting; what belongs to one kind of a choice stands after a dash."""
        optional = field not in self.node(owner).get("required", [])
        default = f"`{shown(value['default'])}`" if "default" in value else "" if optional else "required"
        values = " or ".join(dict.fromkeys(self.values(value)))
        values += ", or your [own](adding_a_mechanism.md)" * has_own(owner, field)
        return f"| {'- ' * (self.kind(owner) is not None)}`{place}` | {values} | {default} | {one_line(value)} |"

    def values(self, value: Node) -> Iterator[str]:
        """What may be given, in words."""
        names = [
            name for form in forms(value) for name in ([form["$ref"].rpartition("/")[2]] if "$ref" in form else [])
        ]
        if kinds := [f"`{kind}`" for kind in map(self.kind, names) if kind is not None]:
            yield f"{', '.join(kinds)} ([which]({self.anchor(names[0])}))"
        for form in forms(value):
            if "enum" in form:
                yield ", ".join(f"`{choice}`" for choice in form["enum"])
            elif "const" in form:
                yield f"`{form['const']}`"
            elif form.get("type") == "array":
                yield f"a list of {' or '.join(self.values(form['items']))}"
            elif form.get("type") == "object":
                yield "`{key: value}`"
            elif form.get("type") in TYPES:
                yield " ".join(
                    [TYPES[form["type"]], *(text.format(form[key]) for key, text in LIMITS.items() if key in form)]
                )
        yield from (f"[settings]({self.anchor(name)})" for name in names if self.kind(name) is None)

    def node(self, name: str) -> Node:
        return self.tree if name == ROOT else self.tree["$defs"][name]

    def kind(self, name: str) -> str | None:
        """The name by which a class is chosen, if it is one of several."""
        return self.node(name)["properties"].get("kind", {}).get("const")

    def anchor(self, name: str) -> str:
        """The link to a class, as GitHub makes it of the heading."""
        return "#" + re.sub(r"[^\w -]", "", self.headings[name].lower()).replace(" ", "-")


def forms(value: Node) -> Iterator[Node]:
    """Yields the single forms that a value may have."""
    inner = [form for key in ("anyOf", "oneOf") for form in value.get(key, [])]
    for form in inner:
        yield from forms(form)
    if not inner:
        yield value


def classes(value: Node) -> Iterator[str]:
    """Yields the names of the classes that a value may be, or a list may hold."""
    for form in forms(value):
        if "$ref" in form:
            yield form["$ref"].rpartition("/")[2]
        elif "items" in form:
            yield from classes(form["items"])


def has_own(owner: str, field: str) -> bool:
    """Whether a class of a user's own may stand there."""
    return any(isinstance(mark, OrOwn) for mark in getattr(schema, owner).model_fields[field].metadata)


def one_line(node: Node) -> str:
    """The description, fit for a cell of a table."""
    return " ".join(node.get("description", "").split()).replace("|", r"\|")


def shown(value: Any) -> str:
    """A default as it is typed after `--set`: a kind by its name; `...` for a section with defaults of its own."""
    if isinstance(value, dict) and value:
        return value.get("kind", "...")
    return value if isinstance(value, str) else json.dumps(value)


def rewritten(text: str) -> str:
    """Returns the document with the reference written anew below the mark; raises ValueError without a mark."""
    before, mark, _ = text.partition(BEGIN)
    if not mark:
        raise ValueError(f"{DOCUMENT} has no line {BEGIN.strip()}")
    return before + BEGIN + "\n".join(Reference().lines()) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))
