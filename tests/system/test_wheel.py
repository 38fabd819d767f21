"""The wheel holds all that the program needs, and works where there is no checkout."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest

import looplm
from tests.config.shipped import FINETUNE_NAMES, NAMES

ROOT = Path(looplm.__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
SHORT = {"num_steps": 2, "optim.schedule.warmup_steps": 0}
RESOLVE = """
import sys
from looplm.config.load import configs_in, load_config
from looplm.config.file import find_config
for name in sys.argv[1:]:
    # A fine-tuning's model is that of a folder, so the config is only found, and its functions are.
    print(find_config(name).path if name.startswith("finetune/") else load_config(name).model.dim)
    assert configs_in(find_config(name).path)
"""

BROUGHT = {"absl": "orbax-checkpoint", "ml_dtypes": "jax", "mlflow": "mlflow-skinny", "pydantic_core": "pydantic"}
"""Modules that come with what is asked for."""
FOR_COMPARISON = {"torch", "transformers"}
"""Only `--reference` needs them, and says so."""


class Installed(NamedTuple):
    """An environment that holds the wheel."""

    prefix: Path

    def run(self, *words: object, program: str = "looplm") -> str:
        """What a program of the environment prints, started where no checkout is."""
        ended = subprocess.run(
            [self.prefix / "bin" / program, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=self.prefix,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"},
            check=False,
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
        return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that a release has, so that nothing is left beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "looplm", "configs"):
        (source / name).symlink_to(ROOT / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run([*PIP, *build], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel alone in a new environment, beside the libraries that the tests run with."""
    prefix = tmp_path_factory.mktemp("fresh")
    venv.create(prefix, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)}))
    # A folder that a .pth names is searched, but its own .pth, which would find the checkout, is not run.
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    install = ["--python", str(prefix / "bin" / "python"), "install", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run([*PIP, *install], check=True, capture_output=True)
    return Installed(prefix)


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    inside = {name for name in ZipFile(wheel).namelist() if name.startswith("looplm/")}
    assert inside == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "looplm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_its_version_is_that_of_the_package(wheel: Path, fresh: Installed) -> None:
    assert fresh.run("--version") == f"looplm {looplm.__version__}\n"
    assert wheel.name == f"looplm-{looplm.__version__}-py3-none-any.whl"
    files = [
        ROOT / "pyproject.toml",
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "launch").rglob("*.*"),
    ]
    elsewhere = [path for path in files if looplm.__version__ in path.read_text()]
    assert elsewhere == [], "the version is written in looplm/__init__.py alone"


def test_every_shipped_config_is_found_by_its_name(fresh: Installed) -> None:
    lines = fresh.run("-c", RESOLVE, *NAMES, *FINETUNE_NAMES, program="python").splitlines()
    assert len(lines) == len(NAMES) + len(FINETUNE_NAMES)
    assert [line for line in lines if not line.isdigit() and not line.startswith(str(fresh.prefix))] == []


def test_what_it_imports_is_what_it_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = {plain(re.split(r"[^\w-]", requirement)[0]) for requirements in lists for requirement in requirements}
    providers = packages_distributions() | {name: [package] for name, package in BROUGHT.items()}
    foreign = imported(ROOT / "looplm") - sys.stdlib_module_names - FOR_COMPARISON - {"looplm"}
    assert len(foreign) > 10
    by_package = {
        name: {package.lower().replace("_", "-") for package in providers.get(name, [name])} for name in foreign
    }
    assert {name for name, packages in by_package.items() if not asked & packages} == set()


@pytest.mark.slow
def test_it_trains_a_shipped_config_and_shows_the_run(fresh: Installed, tiny_data: Path) -> None:
    settings = SHORT | {
        "model.vocab_size": 384,
        "data.train": tiny_data / "train",
        "data.validation": tiny_data / "validation",
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    fresh.run("train", "ouro:tiny", "--workdir", "run", *words)
    assert "depth" in fresh.run("eval", "run", "--depths", "1,2")
    fresh.run("report", "run")
    assert (fresh.prefix / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_it_runs_the_demo(fresh: Installed) -> None:
    fresh.run("demo", "--out", "demo", *settings(SHORT))
    assert (fresh.prefix / "demo" / "run" / "report.html").is_file()


def settings(values: dict[str, object]) -> list[str]:
    """The words of a command line that set them."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def plain(package: str) -> str:
    """A package's name as registries compare it."""
    return package.lower().replace("_", "-")


def imported(package: Path) -> set[str]:
    """The first names of all imports, also of those inside functions."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found
