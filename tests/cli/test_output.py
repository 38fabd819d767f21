"""What is printed arrives as it is, byte for byte: on a pipe, in any locale, and whether or not somebody reads it."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.cli.output import Output, console, messages
from tests.conftest import Outcome, Program

ODD = "all:\tx[:100:2]  :key:\r [bold]b[/bold] \f\v\x07\x1b[1m é日 \ufffd " + "long " * 99 + "password=hunter2  "


@pytest.mark.parametrize("stderr", [False, True])
def test_a_line_is_printed_as_it_is(stderr: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Output(stderr=stderr).print(ODD)
    assert capsys.readouterr()[stderr] == ODD + "\n"


def test_a_line_is_printed_as_it_is_on_a_terminal() -> None:
    screen = Output()
    screen._force_terminal, screen.file = True, io.StringIO()
    screen.print(ODD)
    assert screen.file.getvalue() == ODD + "\n"


def test_all_that_commands_print_is_plain() -> None:
    assert isinstance(console, Output)
    assert isinstance(messages, Output)
    assert messages.stderr


def test_generated_text_is_neither_styled_nor_masked(
    command: Callable[..., Outcome], finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "long long")
    monkeypatch.setattr("looplm.api.LoadedLM.generate", lambda *_, **__: [ODD])
    said = command("generate", finished_run, "--prompt", ODD)
    assert said.stdout == f"{ODD}{ODD}\n"


@pytest.fixture(scope="module")
def odd_dataset(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """Of one text, in a folder whose name is no text."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("odd")) + b"/\xff"))
    folder.mkdir()
    (folder / ":key:[bold]\t.txt").write_text("a :memo: b, password=hunter2, é")
    words = ("data", "build", "--input", folder, "--tokenizer", tiny_data / "train", "--out", folder / "data")
    subprocess.run([sys.executable, "-m", "looplm", *words], check=True, capture_output=True)
    return folder / "data"


def inspect(dataset: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "looplm", "data", "inspect", dataset],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_names_and_texts_of_a_dataset_arrive_in_any_locale(odd_dataset: Path, locale: dict[str, str]) -> None:
    stdout, stderr = inspect(odd_dataset, **locale).communicate()
    assert stderr == b""
    assert b"dataset " + os.fsencode(odd_dataset) + b": 1 documents" in stdout
    shown = ":key:[bold]\t.txt:1, 31 tokens: 'a :memo: b, password=hunter2, é'"
    assert shown in stdout.decode("utf-8", "replace")


def test_a_reader_that_has_gone_is_no_error(odd_dataset: Path) -> None:
    process = inspect(odd_dataset)
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_closed_standard_output_is_no_error(odd_dataset: Path) -> None:
    words = f"{sys.executable} -m looplm data inspect '{odd_dataset}' >&-"
    said = subprocess.run(words, shell=True, capture_output=True, check=False)
    assert (said.returncode, said.stderr) == (0, b"")


def test_a_result_that_could_not_be_written_is_told(odd_dataset: Path) -> None:
    words = f"{sys.executable} -m looplm data inspect '{odd_dataset}' > /dev/full"
    said = subprocess.run(words, shell=True, capture_output=True, check=False)
    assert said.returncode == 1
    assert said.stderr == (
        b"looplm: standard output cannot be written: No space left on device; what was printed is lost\n"
    )


def test_a_run_goes_on_when_nobody_reads(program: Program, config_file, tiny_run, tmp_path: Path) -> None:
    process = program.start("train", config_file(tiny_run()), "--workdir", tmp_path / "run")
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == ""
    assert process.wait() == 0
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


def test_the_traceback_of_a_crash_is_masked(
    command: Callable[..., Outcome], finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr("looplm.api.LoadedLM.generate", crash)
    said = command("generate", finished_run, "--prompt", "x")
    assert said.code == 1
    assert "RuntimeError: password=***" in said.stderr
    assert "hunter2" not in said.stdout + said.stderr
