"""A user's mistake: exit code 2, one line on stderr that names it, no traceback, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.cli import main
from looplm.config.schema import Run

Command = Callable[..., tuple[int, str, str]]
ConfigFile = Callable[[Run], Path]


@pytest.fixture
def refuse(command: Command, tmp_path: Path, finished_run: Path) -> Callable[..., str]:
    """Runs a command line that must be refused, and returns the message."""

    def run(*arguments: object) -> str:
        before = files(tmp_path) | files(finished_run)
        code, _, stderr = command(*arguments)
        assert code == 2
        return the_message(stderr, unchanged=before == files(tmp_path) | files(finished_run))

    return run


@pytest.fixture
def refuse_to_train(
    refuse: Callable[..., str], tiny_run: Callable[..., Run], config_file: ConfigFile, tmp_path: Path
) -> Callable[..., str]:
    """Trains the tiny run with something that must be refused, and returns the message."""
    config = config_file(tiny_run())

    def run(*overrides: str, workdir: Path = tmp_path / "run") -> str:
        return refuse("train", config, "--workdir", workdir, *(part for text in overrides for part in ("--set", text)))

    return run


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything in a folder, with size and time of the last change."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def the_message(stderr: str, *, unchanged: bool) -> str:
    (line,) = stderr.splitlines()
    assert line.startswith("looplm: ")
    assert "Traceback" not in line
    assert unchanged, "a command that is refused writes nothing"
    return line.removeprefix("looplm: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dimm=3", "model.dimm: unknown key; did you mean model.dim?"),
        ("model.dim=abc", "model.dim='abc': input should be a valid integer"),
        ("data.batch_tokens=100", "data.batch_tokens=100 is no multiple of data.sequence_length=16; use 96"),
        ("data.train=nowhere", "dataset nowhere is not a folder; make one with `looplm data build`"),
        ("data.validation=nowhere", "dataset nowhere is not a folder"),
        ("model.vocab_size=100", "model.vocab_size=100 is below the 384 pieces of dataset"),
        ("mesh.data=3", "mesh.data=3, mesh.fsdp=-1: the sizes do not fit 8 devices"),
        ("mesh.data=0", "mesh.data=0, mesh.fsdp=-1: every size must be at least 1"),
        ("mesh.tensor=4", "mesh.tensor=4 does not divide model.num_heads=2; use a divisor of 2"),
        (
            "data.batch_tokens=64",
            "mesh.fsdp=8 does not divide the sequences of a micro-batch, 4; use a divisor of 4, or change data.",
        ),
    ],
)
def test_train_refuses_a_wrong_setting(refuse_to_train, override: str, message: str) -> None:
    assert message in refuse_to_train(override)


def test_train_refuses_a_sequence_longer_than_the_data(refuse_to_train) -> None:
    message = refuse_to_train("data.sequence_length=10000000", "data.batch_tokens=80000000")
    assert "a window of data.sequence_length=10000000 needs 10000001; use at most" in message


def test_train_refuses_a_missing_config(refuse, tmp_path: Path) -> None:
    assert "nowhere.py does not exist" in refuse("train", "nowhere.py", "--workdir", tmp_path / "run")


def test_train_refuses_a_broken_config(refuse, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def config(:\n")
    assert f"{path} line 1: SyntaxError" in refuse("train", path, "--workdir", tmp_path / "run")


def test_train_refuses_the_workdir_of_another_config(refuse_to_train, finished_run: Path) -> None:
    message = refuse_to_train("seed=1", "model.dim=32", workdir=finished_run)
    assert "holds a run with another config: seed=1 (stored: 0), model.dim=32 (stored: 16)" in message


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_train_refuses_a_workdir_where_a_file_is(refuse_to_train, tmp_path: Path, workdir: str) -> None:
    (tmp_path / "file").touch()
    message = refuse_to_train(workdir=tmp_path / workdir)
    assert message == f"workdir {tmp_path / workdir} cannot be made: {tmp_path / 'file'} is a file; give a folder"


def test_build_refuses_an_empty_folder(refuse, tiny_data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    tokenizer = tiny_data / "train" / "tokenizer.model"
    message = refuse("data", "build", "--input", empty, "--tokenizer", tokenizer, "--out", tmp_path / "data")
    assert message.startswith(f"no text file in {empty}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval --depths=1,two", "--depths '1,two' is no comma-separated list of loop counts"),
        ("eval --depths=0,1", "--depths '0,1' is no comma-separated list of loop counts"),
        ("eval --step=999", "holds no checkpoint of step 999; it has [2, 3]"),
        ("eval --data=nowhere", "dataset nowhere is not a folder"),
        ("generate --prompt=x --exit=gate:2", "the threshold '2' is not in (0, 1]; use e.g. gate:0.9"),
        ("generate --prompt=x --exit=entropy:2", "exit rule 'entropy:2' is not known"),
        ("generate --prompt=x --loops=0", "num_loops=0 must be at least 1"),
        ("generate --prompt=x --step=999", "holds no checkpoint of step 999; it has [2, 3]"),
    ],
)
def test_a_wrong_request_to_a_run_is_refused(refuse, finished_run: Path, words: str, message: str) -> None:
    name, *options = words.split()
    assert message in refuse(name, finished_run, *options)


@pytest.mark.parametrize("words", ["eval", "generate --prompt=x", "report"])
@pytest.mark.parametrize("folder", ["empty", "nowhere", "file"])
def test_a_folder_that_is_no_run_is_refused(refuse, tmp_path: Path, words: str, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    name, *options = words.split()
    assert str(tmp_path / folder) in refuse(name, tmp_path / folder, *options)


def test_a_process_refuses_alike(program, tiny_run, config_file: ConfigFile, tmp_path: Path) -> None:
    config = config_file(tiny_run())
    before = files(tmp_path)
    code, stdout, stderr = program.run("train", config, "--workdir", tmp_path / "run", "--set", "model.dimm=3")
    assert (code, stdout) == (2, "")
    message = the_message(stderr, unchanged=files(tmp_path) == before)
    assert message == "model.dimm: unknown key; did you mean model.dim?"


def test_a_wrong_word_is_exit_code_2(command: Command) -> None:
    code, stdout, stderr = command("trian")
    assert (code, stdout) == (2, "")
    message = the_message(stderr, unchanged=True)  # a newer typer also names the nearest command
    assert message.startswith("no such command 'trian'")
    assert message.endswith("; see `looplm --help`")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval", "missing argument 'workdir'; see `looplm eval --help`"),
        ("generate run", "missing option '--prompt'; see `looplm generate --help`"),
        ("eval run --stepp=3", "no such option: --stepp"),
        ("data build --workers=two", "invalid value for '--workers': "),
        ("data tok", "no such command 'tok'; see `looplm data --help`"),
    ],
)
def test_a_wrong_command_line_is_one_line(command: Command, words: str, message: str) -> None:
    code, stdout, stderr = command(*words.split())
    assert (code, stdout) == (2, "")
    assert message.lower() in the_message(stderr, unchanged=True).lower()


def test_no_words_at_all_give_the_help(command: Command) -> None:
    code, _, stderr = command()
    assert code == 2
    assert "Usage: looplm" in stderr
    assert "train" in stderr


def test_a_tokenizer_is_not_overwritten(refuse, texts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"precious")
    message = refuse("data", "tokenizer", "--input", texts[0], "--vocab-size", 384, "--out", tmp_path)
    assert message == f"output {tmp_path / 'tokenizer.model'} exists already; remove it or choose another folder"


def test_train_refuses_to_validate_on_the_training_data(refuse_to_train, tiny_data: Path) -> None:
    folder = tiny_data / "train"
    message = refuse_to_train(f"data.validation={folder}/../train")
    assert message.startswith(f"data.validation={folder}/../train is the folder of data.train={folder}")


def test_an_interrupt_ends_with_one_line_and_without_tearing_threads_down(monkeypatch, capsys) -> None:
    """Ctrl-C reaches the entry point as exit code 130; the process leaves at once."""
    left_with: list[int] = []

    monkeypatch.setattr("looplm.cli.app", lambda **_: 130)
    monkeypatch.setattr("looplm.cli.os._exit", left_with.append)
    with pytest.raises(SystemExit):
        main()
    assert left_with == [130]
    assert capsys.readouterr().err.splitlines() == [
        "looplm: interrupted; what is saved is whole, and the same command goes on from it"
    ]
