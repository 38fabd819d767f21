"""The command line is a promise: commands, options and defaults equal tests/golden/cli.txt.

After a change that is meant: LOOPLM_UPDATE_GOLDEN=1 python -m pytest tests/cli/test_contract.py
"""

import os
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from typer.main import get_command

from looplm.cli import app

GOLDEN = Path(__file__).parents[1] / "golden" / "cli.txt"


def test_the_command_line_equals_what_is_promised() -> None:
    text = "\n\n".join(describe(words, command) for words, command in commands("looplm", get_command(app))) + "\n"
    if os.environ.get("LOOPLM_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """All commands with the words that call them, in alphabetical order."""
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name in sorted(children):
        yield from commands(f"{words} {name}", children[name])


def describe(words: str, command: Any) -> str:
    """The command, and its parameters in their order, one a line.

    Types are those of the Python function: what the parser calls them changes with the version of typer.
    """
    hints = typing.get_type_hints(command.callback)
    lines = [words]
    for parameter in command.params:
        name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
        default = "required" if parameter.required else f"default {parameter.default}"
        repeated = ", repeated" * parameter.multiple
        lines.append(f"  {name:<22}{type_name(hints[parameter.name])}, {default}{repeated}")
    return "\n".join(lines)


def type_name(hint: Any) -> str:
    """`list[str] | None` -> `str`."""
    inner = [argument for argument in typing.get_args(hint) if argument is not NoneType]
    return type_name(inner[0]) if inner else hint.__name__
