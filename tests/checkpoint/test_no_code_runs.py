"""What is read from a checkpoint, a dataset, a config's JSON or an official model runs no code."""

import ast
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

import looplm
from looplm.checkpoint.reader import CheckpointReader
from looplm.config.load import from_json
from looplm.data.dataset import TokenDataset
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from tests.checkpoint.conftest import trees_of

PACKAGE = Path(looplm.__file__).parent
GOLDEN = Path(__file__).parents[1] / "golden" / "ouro_a"
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "torch",
    "runpy",
    "code",
}
CALLS = {"eval", "exec", "compile", "__import__"}
ALLOWED = {("config/load.py", "runpy"), ("convert/parity.py", "torch"), ("convert/parity.py", "trust_remote_code")}
"""A config file that a user names on the command line is Python; nothing that is loaded is. `convert import
--reference` lets transformers read a folder, without code and without pickles of the folder's."""


def suspects(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield node.func.id
            yield from (key.arg for key in node.keywords if key.arg in {"allow_pickle", "trust_remote_code"})


def test_no_module_of_looplm_can() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name in suspects(ast.parse(path.read_text()))
    }
    assert found == ALLOWED


def test_the_search_finds_what_it_looks_for() -> None:
    text = (
        "import pickle\nfrom torch import load\nexec('x')\nnp.load(f, allow_pickle=True)\nmodel.eval()\nstep.compile()"
    )
    assert list(suspects(ast.parse(text))) == ["pickle", "torch", "exec", "allow_pickle"]


class Watch:
    """Hears of everything that is executed, compiled or unpickled, from Python or C, while it is on."""

    EVENTS = ("exec", "compile", "pickle.find_class", "marshal.loads", "code.__new__", "import")

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.on = False
        sys.addaudithook(self)  # stays for good

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.on and event in self.EVENTS:
            self.heard.append(f"{event} {str(arguments)[:200]}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def run_dir(two_steps: Path, tmp_path: Path) -> Path:
    shutil.copytree(two_steps, tmp_path / "run" / "checkpoints")
    shutil.copy(two_steps / "2" / "config.json", tmp_path / "run")
    return tmp_path / "run"


def restore(workdir: Path) -> None:
    run = from_json(workdir / "config.json")
    abstract = trees_of(Program(run, build_mesh(run.mesh, jax.devices()[:1])).abstract_state())
    assert CheckpointReader(workdir / "checkpoints").restore(abstract).seal.step == 2


def open_dataset(workdir: Path) -> None:
    dataset = TokenDataset.open(from_json(workdir / "config.json").data.train)
    dataset.tokenizer()
    dataset.tokens(0, 10)


@pytest.mark.parametrize("load", [restore, open_dataset, lambda _: looplm.load(GOLDEN)], ids=["run", "data", "model"])
def test_loading_executes_nothing(
    watch: Watch, run_dir: Path, load: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(run_dir)  # imports and compiles what it needs
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("pickle"))
    watch.heard.clear()
    watch.on = True
    try:
        load(run_dir)
    finally:
        watch.on = False
    assert [event for event in watch.heard if not event.startswith("import ")] == []


def test_the_watch_hears(watch: Watch) -> None:
    watch.heard.clear()
    watch.on = True
    eval("1 + 1")
    pickle.loads(pickle.dumps(Path("x")))
    watch.on = False
    assert {event.split()[0] for event in watch.heard} >= {"compile", "exec", "pickle.find_class"}
