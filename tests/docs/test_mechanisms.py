"""docs/mechanisms.md holds every choice that the schema has, and no other."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from looplm.config.schema import Loop, Model, Run
from looplm.config.schema.own import Own
from looplm.infer import cache, exit_rule
from looplm.infer.cache import parse_policy

PAGE = (Path(__file__).parents[2] / "docs" / "mechanisms.md").read_text()
TABLE = PAGE[PAGE.index("| axis | settings |") :].partition("\n\n")[0].splitlines()[2:]
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in TABLE]
ELSEWHERE = {"LoopParam", "looplm eval --ema"}
"""What the third column also names as code."""


OWN = "your own"


def code(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell)) - ELSEWHERE


def values(cell: str) -> set[str]:
    return code(cell) | set(re.findall(OWN, cell))


def variants(annotation: Any) -> Iterator[Any]:
    """Walks through a union to the classes, constants and plain types that it is made of."""
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from variants(get_args(annotation)[0])
    else:
        for part in get_args(annotation):
            yield from variants(part)


def sections(annotation: Any) -> list[type[BaseModel]]:
    return [cls for cls in variants(annotation) if isinstance(cls, type) and issubclass(cls, BaseModel)]


def annotations(setting: str) -> list[Any]:
    """What a dotted path may hold, in all variants that have it."""
    found: list[Any] = [Run]
    for name in setting.split("."):
        fields = [cls.model_fields.get(name) for annotation in found for cls in sections(annotation)]
        found = [field.annotation for field in fields if field is not None]
    assert found, f"there is no {setting}"
    return found


def choices(setting: str) -> set[str]:
    """The names that a setting may have: of its variants, or its own constants."""
    if setting == "--exit":
        return {*exit_rule.SHARES, *exit_rule.COUNTS, *exit_rule.TOLERANCES, *exit_rule.OPTIONS}
    if setting == "--kv":
        return {name.partition(":")[0] for name in re.split(", | or ", cache.POLICIES)}
    found: set[str] = set()
    for annotation in annotations(setting):
        for kind in variants(annotation):
            if get_origin(kind) is Literal:
                found |= set(get_args(kind))
            elif isinstance(kind, type) and issubclass(kind, BaseModel) and "kind" in kind.model_fields:
                found.add(OWN if issubclass(kind, Own) else kind.model_fields["kind"].default)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_has_the_choices_of_its_settings(row: list[str]) -> None:
    _, settings, cell = row
    assert values(cell) == set().union(*map(choices, sorted(code(settings))))


@pytest.mark.parametrize(("prefix", "section"), [("model", Model), ("loop", Loop)])
def test_every_choice_has_a_row(prefix: str, section: type[BaseModel]) -> None:
    named = {setting for row in ROWS for setting in code(row[1])}
    numbers = {int, float, type(None)}
    chosen = {
        f"{prefix}.{name}"
        for name, field in section.model_fields.items()
        if any(kind not in numbers for kind in variants(field.annotation))
    }
    assert {setting for setting in chosen if not any(row.startswith(setting) for row in named)} == set()


def test_policies_of_the_cache_are_known() -> None:
    assert all(parse_policy(f"{name}:2" if name == "ring" else name, 4) for name in choices("--kv"))
