"""docs/configuration.md is the schema's, and the schema says what every setting is."""

from collections.abc import Iterator

import pytest

from looplm.config.schema import Run
from looplm.config.schema.base import Section
from tools.configuration_reference import BEGIN, DOCUMENT, rewritten

TEXT = DOCUMENT.read_text()
PARTS = ("model", "loop", "optim", "data", "mesh", "sharding", "checkpoint", "eval", "log")


def sections(cls: type[Section] = Section) -> Iterator[type[Section]]:
    for child in cls.__subclasses__():
        if child.__module__.startswith("looplm."):
            yield child
            yield from sections(child)


def test_the_reference_is_that_of_the_schema() -> None:
    assert rewritten(TEXT) == TEXT, "run python -m tools.configuration_reference"


def test_a_page_without_the_mark_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="has no line"):
        rewritten("mine")
    assert rewritten("mine\n" + BEGIN + "old").startswith("mine\n" + BEGIN + "\n## The run")


def test_every_setting_has_a_row() -> None:
    rows = {line.split("`")[1] for line in TEXT.splitlines() if line.startswith(("| `", "| - `"))}
    below = {f"{name}.{leaf}" for name in PARTS for leaf in Run.model_fields[name].annotation.model_fields}
    assert below | set(Run.model_fields) <= rows


@pytest.mark.parametrize("cls", list(sections()), ids=lambda cls: cls.__name__)
def test_every_class_and_every_field_is_described(cls: type[Section]) -> None:
    assert cls.__dict__.get("__doc__")
    assert [name for name, field in cls.model_fields.items() if not field.description and name != "kind"] == []
