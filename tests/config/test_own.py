"""Parts of a user's own in a config: how they are written, found again and refused."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from looplm.config.load import from_json, leaves, load_config, override, to_json
from looplm.config.schema import Fraction, OwnInjection, OwnObjective, Run
from looplm.errors import UserError

HERE = __name__
PARTS = """
from looplm.config.load import load_config, override
from looplm.config.schema import OwnInjection

print("parts run")


class Mine(OwnInjection):
    share: float = 0.5


def config():
    return override(load_config("demo_cpu"), {"model.injection": Mine(share=0.25)})
"""


class Shared(OwnInjection):
    """Told by the name of this file."""

    share: Fraction = 0.5

    def faults(self, run: Run) -> Iterator[str]:
        if self.share == run.loop.num_loops:
            yield "model.injection.share is the number of loops; use less"


class Other(OwnObjective):
    weight: float = 1.0


KIND = f"{HERE}:Shared"


@pytest.fixture
def run(tiny_run: Callable[..., Run]) -> Run:
    return tiny_run(**{"model.injection": Shared(share=0.25), "objective": Other()})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Writes modules into a folder that Python searches; they are forgotten afterwards."""
    folder, before = tmp_path / "elsewhere", set(sys.modules)
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def write(name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def stored(run: Run, kind: str, folder: Path) -> Path:
    """A config.json whose injection has another kind."""
    path = folder / "config.json"
    path.write_text(to_json(run).replace(KIND, kind))
    return path


def test_it_is_written_with_its_place_and_fields_and_read_again(run: Run, tmp_path: Path) -> None:
    assert leaves(run)["model.injection.kind"] == KIND
    assert leaves(run)["model.injection.share"] == 0.25
    assert from_json(stored(run, KIND, tmp_path)) == run


def test_set_reaches_its_fields_and_chooses_it(run: Run) -> None:
    assert override(run, {"model.injection.share": 0.75}).model.injection == Shared(share=0.75)
    plain = override(run, {"model.injection": "add"})
    assert override(plain, {"model.injection": KIND}).model.injection == Shared()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.injection.shar": 1}, "model.injection.shar: unknown key; did you mean model.injection.share?"),
        ({"model.injection.share": 7}, "model.injection.share=7: input should be less than or equal to 1"),
        ({"model.injection": {"kind": KIND, "shar": 1}}, "model.injection.shar: unknown key; did you mean model.inj"),
        ({"model.injection": f"{HERE}:Other"}, f"model.injection: {HERE}:Other is a class of your own, and what was"),
        ({"objective": KIND}, f"objective: {KIND} is a class of your own, and what was imported under that name is no"),
        ({"model.injection": "gated"}, "model.injection='gated' is not known; use 'none', 'add', "),
        ({"model.injection": "a b:C"}, "model.injection='a b:C' is not known; use 'none', 'add', "),
        ({"model.state_init": KIND}, f"model.state_init='{KIND}' is not known; use 'input', "),
    ],
)
def test_what_is_wrong_is_told_as_for_shipped_parts(run: Run, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        override(run, changes)
    assert str(error.value).startswith(message)


def test_its_own_rules_are_checked(write_config: Callable[[Path, Run], Path], run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, override(run, {"model.injection.share": 1.0}))
    with pytest.raises(UserError, match=r"model\.injection\.share is the number of loops; use less"):
        load_config(path, ["loop.num_loops=1"])


@pytest.mark.parametrize("name", ["mine_1.py", "mine-2.py", "package_3/__init__.py", "package_4/mine.py"])
def test_a_module_is_imported_when_it_is_found(run: Run, elsewhere, name: str, tmp_path: Path) -> None:
    elsewhere(name, PARTS)
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    injection = from_json(stored(run, f"{module}:Mine", tmp_path)).model.injection
    assert injection.model_dump() == {"kind": f"{module}:Mine", "share": 0.25}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("print('parts run')\nMine = 3\n", "the mine_5.py that Python finds defines no such class"),
        ("print('parts run')\nclass Mine:\n    pass\n", "the mine_5.py that Python finds defines no such class"),
        ("print('parts run'\n", "the mine_5.py that Python finds defines no such class"),
        ("def f():\n    class Mine(OwnInjection): pass\n", "the mine_5.py that Python finds defines no such class"),
        (None, "Python finds no mine_5.py; put the folder that holds it on PYTHONPATH, or import mine_5 first"),
    ],
)
def test_nothing_is_run_that_does_not_define_the_class(
    run: Run, elsewhere, text: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        elsewhere("mine_5.py", text)
    path = stored(run, "mine_5:Mine", tmp_path)
    with pytest.raises(UserError) as error:
        from_json(path)
    told = f"{path}: model.injection: mine_5:Mine is a class of your own, and {reason}"
    assert str(error.value).startswith(told)
    assert "restore" not in str(error.value)
    assert "mine_5" not in sys.modules
    assert not capsys.readouterr().out


@pytest.mark.parametrize("kind", ["this:Mine", "antigravity:Mine", "xml.dom.pulldom:Mine", "idlelib.idle:Mine"])
def test_names_of_other_modules_import_nothing(run: Run, kind: str, tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(UserError, match="is a class of your own, and"):
        from_json(stored(run, kind, tmp_path))
    assert kind.partition(":")[0] not in set(sys.modules) - before


def test_code_beside_a_config_that_is_read_is_not_found(run: Run, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine_6.py").write_text(PARTS)
    with pytest.raises(UserError, match=r"Python finds no mine_6\.py"):
        from_json(stored(run, "mine_6:Mine", tmp_path))
    assert not capsys.readouterr().out


def test_a_module_that_fails_is_told_with_its_error(run: Run, elsewhere, tmp_path: Path) -> None:
    elsewhere("mine_7.py", PARTS + "\n1 / 0\n")
    with pytest.raises(UserError, match=r"and mine_7\.py fails with ZeroDivisionError: division by zero; mend it"):
        from_json(stored(run, "mine_7:Mine", tmp_path))


def test_a_config_file_may_define_it(tmp_path: Path) -> None:
    path = tmp_path / "my_run.py"
    path.write_text(PARTS)
    run = load_config(path, ["model.injection.share=0.125"])
    assert run.model.injection.model_dump() == {"kind": "my_run:Mine", "share": 0.125}
    assert "my_run" not in sys.modules
    assert str(tmp_path) not in sys.path


def test_a_file_that_was_imported_before_is_a_config_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine_9.py"
    path.write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "mine_9", importlib.import_module("mine_9"))
    assert load_config(path).model.injection.kind == "mine_9:Mine"


def test_a_config_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "parts_8.py").write_text(PARTS)
    path = tmp_path / "use.py"
    path.write_text("from parts_8 import Mine, config as base\n\n\ndef config():\n    return base()\n")
    try:
        assert load_config(path).model.injection.kind == "parts_8:Mine"
    finally:
        del sys.modules["parts_8"]


@pytest.mark.parametrize("name", ["json.py", "a.b.py", "no_ending"])
def test_a_class_that_no_import_would_find_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(PARTS)
    with pytest.raises(UserError, match="Mine is in a file whose name means another module or none; rename the file"):
        load_config(path)
