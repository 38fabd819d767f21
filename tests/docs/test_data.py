"""The commands of docs/data.md that build a dataset in parts do what is said beside them."""

import re
import shlex
from pathlib import Path

import pytest

from looplm.cli import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text()


def test_parts_are_joined_as_it_says(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = TEXT.partition("## In parts")[2].partition("\n## ")[0]
    commands = [shlex.split(line) for line in re.findall(r"^    looplm (.*)$", section, re.MULTILINE)]
    assert [words[:2] for words in commands] == [["data", "build"], ["data", "build"], ["data", "join"]]
    monkeypatch.chdir(tmp_path)
    for name, text in {"texts/a.txt": "one two", "texts/b.md": "three", "texts/c/d.txt": "four"}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/tokenizer.model").write_bytes((tiny_data / "train/tokenizer.model").read_bytes())
    whole = [word for word in commands[0] if not word.startswith("runs/mine/parts")][:-3]
    for words in [*commands, [*whole, "--out", "whole"]]:
        monkeypatch.setattr("sys.argv", ["looplm", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    assert "wrote runs/mine/joined: 3 documents" in capsys.readouterr().out
    assert contents(Path("runs/mine/joined")) == contents(Path("whole"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
