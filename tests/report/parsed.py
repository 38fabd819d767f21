"""A page of the report, taken apart."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "source", "br", "input"}


class Page(HTMLParser):
    """The parsed document: elements with their attributes, text by element, tables by section; unbalanced tags fail."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[list[str]]]] = {}
        """By the section's id: rows of cells, the heads first."""
        self.open: list[str] = []
        self._section = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        tables = self.tables.setdefault(self._section, [])
        if tag == "table":
            tables.append([])
        elif tag == "tr":
            tables[-1].append([])
        elif tag in ("td", "th"):
            tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self._section][-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def pictures(self) -> list[str]:
        """The words of all drawings."""
        return [str(attributes["aria-label"]) for attributes in self.all("svg")]

    def table(self, section: str, *headers: str) -> list[list[str]]:
        """The rows of the first table of a section whose heads begin with these."""
        for table in self.tables[section]:
            if table[0][: len(headers)] == list(headers):
                return table[1:]
        raise AssertionError(f"no such table among {[table[0] for table in self.tables[section]]}")

    def says(self, text: str) -> bool:
        """Whether an element holds the text; what is set as code is an element of its own."""
        return any(text in part for parts in self.text.values() for part in parts)
