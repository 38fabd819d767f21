"""docs/launching.md names templates, commands and files that are there."""

import re
from pathlib import Path

from typer.main import get_command

from looplm.cli import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "launching.md").read_text()


def test_files_that_it_names_are_there() -> None:
    named = set(re.findall(r"\b((?:looplm|tests|tools|launch)/[\w/.-]*\w)", TEXT))
    assert len(named) > 10
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    values = re.findall(r"`([\w-]+\.toml)`", TEXT)
    assert sorted(values) == sorted(path.name for path in (ROOT / "launch" / "gke").glob("*.toml"))


def test_commands_that_it_names_are_there() -> None:
    known = get_command(app).commands
    named = re.findall(r"looplm (launch \w+|doctor|train)", TEXT)
    assert len(named) > 5
    for words in map(str.split, named):
        command = known[words[0]]
        assert len(words) == 1 or words[1] in command.commands
    actions = re.findall(r"tpu\.sh (\w+)", TEXT)
    assert len(actions) > 4
    script = (ROOT / "launch" / "tpu_vm" / "tpu.sh").read_text()
    assert [action for action in actions if f"\n{action}() {{" not in script] == []
