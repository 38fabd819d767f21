"""Which file and which of its configs `FILE[:NAME]` means."""

import shutil
from pathlib import Path

import pytest

from looplm.config.file import find_config, shipped_configs
from looplm.config.load import configs_in, load_config, override
from looplm.config.renamed import RENAMED
from looplm.config.schema import Run
from looplm.errors import UserError

CONFIGS = """
from looplm.config.load import load_config, override


def _base():
    return load_config("demo_cpu")


def config_{first}():
    return override(_base(), {{"seed": 1}})


def config_1_4b():
    return override(_base(), {{"seed": 2}})


def config_no_gate():
    return override(_base(), {{"seed": 3}})
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of three configs, whose seed tells which one was made; the working directory is that of the file."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(CONFIGS.format(first="small"))
    return path


@pytest.mark.parametrize(
    ("name", "seed"),
    [("", 1), (":small", 1), (":1.4b", 2), (":1_4b", 2), (":1.4B", 2), (":no_gate", 3), (":no-gate", 3)],
)
@pytest.mark.parametrize("folder", ["", "./", "{folder}/"])
def test_a_name_chooses_one_of_a_files_configs(mine: Path, folder: str, name: str, seed: int) -> None:
    assert load_config(f"{folder.format(folder=mine.parent)}mine.py{name}").seed == seed


def test_a_plain_config_goes_before_the_named_ones(mine: Path) -> None:
    text = CONFIGS.format(first="small") + "\n\ndef config():\n    return override(_base(), {'seed': 4})\n"
    mine.write_text(text)
    assert (load_config(mine).seed, load_config(f"{mine}:small").seed) == (4, 1)


@pytest.mark.parametrize("file", ["a:b.py", "c:/run.py", "s3:/bucket/run.py", "12:30/mine.py", "mine:1.4b"])
def test_a_path_may_hold_colons(mine: Path, file: str) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(mine, file)
    assert load_config(file).seed == 1
    assert load_config(f"{file}:1.4b").seed == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mine.py:1.5b", "mine.py has no config '1.5b'; did you mean 1.4b?; it has small, 1.4b, no_gate"),
        ("mine.py:zzz", "mine.py has no config 'zzz'; it has small, 1.4b, no_gate"),
        ("mine.py:", "mine.py has no config ''; it has small, 1.4b, no_gate"),
        ("mine.py:_base", "mine.py has no config '_base'; did you mean no_gate?; it has small, 1.4b, no_gate"),
        ("one.py:tiny", "one.py has no config 'tiny'; it has one config, without a name"),
        ("mime.py:small", "config file mime.py does not exist; the shipped ones are albert, coconut, compressive, "),
        ("ouroo:1.4b", "config file ouroo does not exist; did you mean ouro?; the shipped ones are albert, "),
        ("configs/ouro.py:tiny", "config file configs/ouro.py does not exist; did you mean ouro?; the shipped ones "),
        ("C:\\runs\\mine.py", "config file C:\\runs\\mine.py does not exist; "),
        ("gs://bucket/mine.py", "config file gs://bucket/mine.py does not exist; "),
        ("gs://bucket/mine.py:tiny", "config file gs://bucket/mine.py does not exist; "),
        (":tiny", "config file :tiny does not exist; "),
    ],
)
def test_what_is_not_there_is_told_with_what_is(mine: Path, given: str, message: str) -> None:
    Path("one.py").write_text("def config():\n    return 1 / 0\n")
    with pytest.raises(UserError) as error:
        load_config(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["ouro:tiny", "ouro.py:tiny"])
def test_a_shipped_config_is_found_by_its_name(mine: Path, given: str) -> None:
    assert load_config(given) == load_config(f"{shipped_configs()}/ouro.py:tiny")


def test_a_file_goes_before_a_shipped_one_of_its_name(mine: Path) -> None:
    shutil.copy(mine, "ouro.py")
    assert load_config("ouro.py:small").seed == 1


def test_the_first_of_a_shipped_file_is_its_smallest_published_size() -> None:
    first = {path.stem: next(iter(configs_in(path))) for path in sorted(shipped_configs().glob("*.py"))}
    assert first == {
        "albert": "base",
        "coconut": "prosqa",
        "compressive": "enwik8",
        "demo_cpu": "",
        "elt": "l",
        "edge": "60m",
        "eqr": "sudoku",
        "hrm": "sudoku",
        "hrm_text": "1b",
        "huginn": "3.5b",
        "hyperloop": "136m",
        "looped_moe": "1b",
        "loopformer": "3x8",
        "moeut": "44m",
        "mor": "360m",
        "ouro": "1.4b",
        "parcae": "140m",
        "smelt": "100m",
        "sudoku_cpu": "",
        "transformer_xl": "enwik8.12l",
        "trm": "sudoku",
        "universal_transformer": "base",
        "urm": "sudoku",
    }


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_still_works_and_is_told_with_the_new_one(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = shipped_configs() / f"{old}.py"
    run = load_config(given)
    note = capsys.readouterr().err
    new, *changes = RENAMED[old]
    typed = " --set ".join([str(shipped_configs() / new), *changes])
    assert note == f"note: {given} is {typed} now; the old name works until version 0.2\n"
    first, *overrides = typed.split(" --set ")
    assert run == load_config(first, overrides)
    assert not capsys.readouterr().err


def test_an_old_name_in_another_folder_is_only_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ouro_1_4b\.py does not exist"):
        find_config(tmp_path / "ouro_1_4b.py")


def test_what_an_old_name_stands_for_yields_to_set() -> None:
    run = load_config("ouro_2_6b_tiny", ["model.block_layers=3"])
    expected: Run = override(load_config("ouro:tiny"), {"model.block_layers": 3})
    assert run == expected
