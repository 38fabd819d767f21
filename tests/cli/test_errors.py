"""A user's mistake: exit code 2, one line on stderr that names it, no traceback, and nothing written.

The command lines and their messages are in tests/golden/errors.txt, and the inputs that they name in `wrong_inputs.py`.
After a change that is meant: LOOPLM_UPDATE_GOLDEN=1 python -m pytest tests/cli/test_errors.py
"""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.cli import main
from looplm.config.load import shipped_configs
from looplm.config.schema import Run
from looplm.errors import Preempted
from tests.cli.wrong_inputs import make_wrong_inputs

GOLDEN = Path(__file__).parents[1] / "golden" / "errors.txt"
PROMPT = "$ looplm "
Command = Callable[..., tuple[int, str, str]]


def corpus() -> dict[str, str]:
    """{command line: message}."""
    lines = [line for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#")]
    places = [place for place, line in enumerate(lines) if line.startswith(PROMPT)]
    return {
        lines[place].removeprefix(PROMPT): "\n".join(lines[place + 1 : after])
        for place, after in zip(places, [*places[1:], len(lines)], strict=True)
    }


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, finished_run: Path, tiny_run: Callable[..., Run]
) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    make_wrong_inputs(folder, tiny_data, finished_run, tiny_run())
    return folder


@pytest.fixture(scope="module", autouse=True)
def update() -> None:
    """Rewrites the messages of the golden file, in its order, when that is asked for."""
    if os.environ.get("LOOPLM_UPDATE_GOLDEN"):
        kept = [line for line in GOLDEN.read_text().splitlines() if not line or line.startswith(("#", PROMPT))]
        GOLDEN.write_text("\n".join(kept) + "\n")


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything in a folder, with size and time of the last change; not the cache of compiled programs."""
    found = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "compiled")
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


def the_message(stderr: str, folder: Path) -> str:
    """The one line, without what depends on the machine or on the length of a file."""
    (line,) = stderr.splitlines()
    assert line.startswith("looplm: ")
    assert "Traceback" not in line
    line = line.removeprefix("looplm: ").replace(f"{folder}/", "").replace(str(shipped_configs()), "configs")
    line = re.sub(r"\d+ bytes instead of \d+", "N bytes instead of M", line)
    return re.sub(r"line \d+ column \d+ \(char \d+\)", "line L column C (char N)", line)


def test_the_corpus_is_large() -> None:
    assert len(corpus()) >= 100


@pytest.mark.parametrize("words", corpus())
def test_a_mistake_is_one_line(words: str, command: Command, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    before = files(inputs)
    code, _, stderr = command(*shlex.split(words))
    assert code == 2
    message = the_message(stderr, inputs)
    assert files(inputs) == before, "a command that is refused writes nothing"
    if os.environ.get("LOOPLM_UPDATE_GOLDEN"):
        GOLDEN.write_text(GOLDEN.read_text().replace(f"{PROMPT}{words}\n", f"{PROMPT}{words}\n{message}\n", 1))
    assert message == corpus()[words]
    assert "hunter2" not in message


def test_no_words_at_all_give_the_help(command: Command) -> None:
    code, _, stderr = command()
    assert code == 2
    assert "Usage: looplm" in stderr
    assert "train" in stderr


def test_the_end_of_a_run_does_not_wait_for_threads_that_read(monkeypatch, capsys) -> None:
    """Storage may not answer any more, and a scheduler waits for the exit code."""
    left_with: list[int] = []

    def end(**_: object) -> None:
        raise Preempted("SIGTERM: saved after step 3")

    monkeypatch.setattr("looplm.cli.app", end)
    monkeypatch.setattr("os._exit", left_with.append)
    with pytest.raises(SystemExit):
        main()
    assert left_with == [75]
    assert "saved after step 3" in capsys.readouterr().err


def test_an_interrupt_ends_with_one_line_and_without_tearing_threads_down(monkeypatch, capsys) -> None:
    """Ctrl-C reaches the entry point as exit code 130; the process leaves at once."""
    left_with: list[int] = []

    monkeypatch.setattr("looplm.cli.app", lambda **_: 130)
    monkeypatch.setattr("os._exit", left_with.append)
    with pytest.raises(SystemExit):
        main()
    assert left_with == [130]
    assert capsys.readouterr().err.splitlines() == [
        "looplm: interrupted; what is saved is whole, and the same command goes on from it"
    ]
