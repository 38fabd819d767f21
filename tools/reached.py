"""Which lines of a package every test runs, those of its fixtures and of processes included: which tests could notice a
slip in a line.

The package is instrumented: every statement in a function first says that it runs. What jax has traced for a test does
not run again for the next one in the same file.
"""

import ast
import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

PLACE = "REACHED_FILE"
"""The variable of the environment, which processes inherit, that names where lines are written."""
MODULE = "reached_lines"
SAYS = f"""\
import os

seen = set()


def reached(path, line):
    file = os.environ.get({PLACE!r})
    if file and (file, path, line) not in seen:
        seen.add((file, path, line))
        with open(file, "a") as opened:
            opened.write(f"{{path}}\\t{{line}}\\n")
"""


@dataclass
class Test:
    """One that passes."""

    __test__ = False

    name: str
    """As pytest takes it."""
    seconds: float
    """With the fixtures that are its alone."""
    fixtures: dict[str, float]
    """Seconds of those that it shares with others."""
    lines: dict[str, list[int]]
    """First lines of statements, by path below the root."""

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]

    def runs(self, path: str, lines: tuple[int, int]) -> bool:
        return any(lines[0] <= line <= lines[1] for line in self.lines.get(path, ()))


class _Instrument(ast.NodeTransformer):
    def __init__(self, path: str):
        self.path, self.depth = path, 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if self.depth and isinstance(statements, list) and not isinstance(node, ast.ClassDef):
                setattr(node, name, [part for statement in statements for part in self._said(statement)])
        return node

    def _said(self, statement: ast.stmt) -> Iterator[ast.stmt]:
        call = ast.parse(f"{MODULE}.reached({self.path!r}, {statement.lineno})").body[0]
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        yield from (statement,) if is_docstring or isinstance(statement, ast.Nonlocal) else (call, statement)


def instrument(root: Path, package: str) -> None:
    """Rewrites all files of a package below a root."""
    (root / f"{MODULE}.py").write_text(SAYS)
    for file in (root / package).rglob("*.py"):
        tree = _Instrument(file.relative_to(root).as_posix()).visit(ast.parse(file.read_text()))
        has_docstring = ast.get_docstring(tree) is not None
        tree.body.insert(int(has_docstring), ast.Import([ast.alias(MODULE)]))
        file.write_text(ast.unparse(ast.fix_missing_locations(tree)))


class Recorder:
    """A plugin of pytest."""

    def __init__(self, folder: Path):
        """folder: for what is said, a file for every test and every fixture."""
        self.folder = folder
        self.tests: list[Test] = []
        self._fixtures: dict[Any, tuple[set[str], float]] = {}
        self._made_s = 0.0
        """What all fixtures together took."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Iterator[None]:
        self._passed, self._seconds, shared = True, 0.0, {}
        place, _ = self._begin()
        result = yield
        said = self._end(place, "")
        for name, definitions in item._fixtureinfo.name2fixturedefs.items():
            for definition in definitions:
                own, seconds = self._fixtures.get(definition, (set(), 0.0))
                said |= own
                if definition.scope == "function":
                    self._seconds += seconds
                else:
                    shared[f"{definition.baseid}::{name}"] = seconds
        if self._passed:
            lines = defaultdict(list)
            for path, number in sorted(line.split("\t") for line in said):
                lines[path].append(int(number))
            self.tests.append(Test(item.nodeid, self._seconds, shared, dict(lines)))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        place, outer = self._begin()
        started, others = time.perf_counter(), self._made_s
        try:
            return (yield)
        finally:
            seconds = time.perf_counter() - started - (self._made_s - others)
            self._made_s += seconds
            self._fixtures[fixturedef] = self._end(place, outer), seconds

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._passed &= report.outcome == "passed"
        if report.when == "call":
            self._seconds += report.duration

    def _begin(self) -> tuple[Path, str]:
        """Where lines are written from now on, and where they were."""
        place, outer = self.folder / str(time.monotonic_ns()), os.environ.get(PLACE, "")
        place.touch()
        os.environ[PLACE] = str(place)
        return place, outer

    def _end(self, place: Path, outer: str) -> set[str]:
        os.environ[PLACE] = outer
        return set(place.read_text().splitlines())


def record(root: Path, test_file: str, result: Path) -> int:
    """Runs a file of tests in this process and stores what its tests run.

    Args:
        root: the package as it is; the one that is imported is instrumented.
    """
    folder = result.with_suffix("")
    folder.mkdir(exist_ok=True)
    recorder = Recorder(folder)
    code = int(pytest.main(["-q", "-p", "no:cacheprovider", test_file], plugins=[recorder]))
    paths = sorted({test_file, *(path for test in recorder.tests for path in test.lines)})
    content = {"paths": paths, "digest": digest(root, paths), "tests": [asdict(test) for test in recorder.tests]}
    result.write_text(json.dumps(content))
    return code


def recorded(root: Path, result: Path) -> list[Test] | None:
    """What was stored; None when it is of other files than there are now."""
    if not result.exists():
        return None
    content = json.loads(result.read_text())
    return [Test(**test) for test in content["tests"]] if digest(root, content["paths"]) == content["digest"] else None


def digest(root: Path, paths: Iterable[str]) -> str:
    """Of the content of files below a root, whether they are there or not."""
    content = {path: (root / path).read_text() if (root / path).exists() else None for path in sorted(paths)}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
