"""Every command of every page is one: the real command line takes its words, its files and settings are there."""

import ast
import itertools
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from looplm.cli import app, main
from looplm.config.load import load_config, override
from looplm.errors import UserError
from tools.page_commands import ROOT, Command, commands, pages, walk

UsageError: Any = typer.BadParameter.__base__
EVERY = [
    pytest.param(command, id=f"{page.name}: {command.text[:90]}")
    for page in pages()
    for command in commands(page.read_text())
]
INLINE = sorted({code for page in pages() for code in re.findall(r"`(looplm [a-z][^`]*)`", page.read_text())})
FOLDERS = r"(?:configs|docs|examples|launch|looplm|tests|tools)/"
QUICKSTART = ROOT / "docs" / "quickstart.md"


def test_there_are_commands_to_look_at() -> None:
    assert len(EVERY) > 80
    assert len(INLINE) > 20


@pytest.mark.parametrize("command", EVERY)
def test_a_command_is_taken(command: Command) -> None:
    files_exist(command.text)
    first = re.split(r" \| kubectl| \|\| ", command.text.splitlines()[0])[0]
    words = shlex.split(re.sub(r"^timeout( --\S+)* \d+ ", "", first))
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[0] == "looplm":
        is_taken(words[1:], strict=not command.is_pattern)
    elif words[0].startswith("python") and words[1] != "-c":
        is_program(words[1:])
    elif words[0] == "make":
        assert all(
            re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
            for target in words[1:]
            if "=" not in target
        )
    elif words[0] == "pip":
        assert set(extras(command.text)) <= set(optional())


def test_a_command_that_not_every_machine_can_run_says_what_it_needs() -> None:
    elsewhere = r"^(sbatch|sky|docker|launch/tpu_vm)|kubectl|--topology (?!cpu)|^(?!looplm plan ).*\bv\d\w*:\d"
    unmarked = [c.values[0] for c in EVERY if re.search(elsewhere, c.values[0].text) and not c.values[0].needs]
    assert unmarked == []


@pytest.mark.parametrize("code", INLINE)
def test_a_command_within_a_sentence_has_options_that_exist(code: str) -> None:
    is_taken(code.split()[1:], strict=False)


def test_a_wrong_command_is_noticed() -> None:
    for text in (
        "looplm trian ouro:tiny --workdir runs/a",
        "looplm train ouro:tiny --workdri runs/a",
        "looplm train ouro:tiny --workdir runs/a --set loop.loops=3",
        "looplm train ouro:tyni --workdir runs/a",
        "looplm train configs/uoro.py --workdir runs/a",
        "looplm data build --input texts",
        "python tools/bench_nothing.py",
        "python tools/bench_data.py --no-such-option 3",
        "make nothing",
        "pip install 'looplm[nothing]'",
    ):
        (command,) = commands(f"    {text}    # comment\n")
        with pytest.raises((AssertionError, UsageError, UserError, FileNotFoundError)):
            test_a_command_is_taken(command)


def test_extras_that_messages_name_are_there() -> None:
    named = {extra for path in (ROOT / "looplm").rglob("*.py") for extra in extras(path.read_text())}
    assert len(named) > 4
    assert named <= set(optional())


@pytest.mark.parametrize("command", [c for c in EVERY if c.values[0].text.startswith("looplm launch gke")])
def test_what_is_printed_at_once_is_run(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words = command.text.partition(" | ")[0].split()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "kind: JobSet" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quick_start_works_as_it_is_written(tmp_path: Path) -> None:
    assert len([command.text for command, *_ in walk(QUICKSTART, tmp_path / "walk")]) > 15


def is_taken(words: list[str], strict: bool) -> None:
    """The words are those of a command; of a pattern, only its command and its options."""
    command, path = get_command(app), "looplm"
    while hasattr(command, "commands") and words and (word := words[0].rstrip(":")) in command.commands:
        command, path, words = command.commands[word], f"{path} {word}", words[1:]
    if hasattr(command, "commands"):
        assert not strict, f"{path} alone does nothing"
        assert not words or not words[0][0].isalpha(), f"{path} has no {words[0]}"
        return
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = (
        {word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")} - known - {"--help"}
    )
    assert unknown == set(), f"{path} has no {unknown}"
    settings_exist(words)
    if strict:
        given = command.make_context(path, list(words)).params
        if config := given.get("config"):
            settings = given.get("set") or []
            if not any("from:" in setting for setting in settings) and not config.startswith("finetune/"):
                load_config(ROOT / config if config.endswith(".py") else config, settings)


def settings_exist(words: list[str]) -> None:
    """What stands after --set is a setting, and has a value that it takes."""
    for flag, setting in itertools.pairwise(words):
        key, equals, value = setting.partition("=")
        if flag == "--set" and equals and key != "a.b" and "from:" not in value and not re.search("[A-Z]{3}", value):
            override(load_config("ouro:tiny"), {key: parsed(value)})


def parsed(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return {"null": None, "true": True, "false": False}.get(value, value)


def is_program(words: list[str]) -> None:
    """A file or module of the checkout with these options."""
    if words[0] == "-m":
        words = words[1:]
        if words[0].partition(".")[0] in ("pytest", "looplm", "venv"):  # with options of another's
            return
        path = ROOT / (words[0].replace(".", "/") + ".py")
    else:
        path = ROOT / words[0]
    source = path.read_text()
    for word in words[1:]:
        if word == "--":
            break
        if option := re.fullmatch(r"\[?--([\w-]+).*", word):
            name = option[1].removeprefix("no-")
            assert re.search(rf"\b{name.replace('-', '_')}\b|--{name}\b", source), f"{path.name} has no --{option[1]}"


def files_exist(text: str) -> None:
    """What lies in a folder of the checkout is there."""
    for name in re.findall(rf"(?<![\w/.-]){FOLDERS}[\w./-]*\w", text):
        assert (ROOT / name).exists() or name.endswith("PACKAGE"), f"there is no {name}"


def extras(text: str) -> list[str]:
    """The names in `looplm[NAMES]` and `.[NAMES]`, of commands that install."""
    found = re.findall(r"(?:pip install |needs )['\"]?(?:looplm|\.)\[([\w,-]+)\]", text)
    return [name for names in found for name in names.split(",")]


def optional() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
