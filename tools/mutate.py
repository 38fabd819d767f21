"""Would the tests notice? Puts small slips into the code, one at a time, and shows those that no test fails for.

    python tools/mutate.py looplm/optim looplm/train/step.py --seed 0 --count 50

Nothing is changed but a copy of the checkout in a temporary folder. Every file of tests that is near (in the folder of
tests of the same name, or it imports that part of the package) runs once by itself, to learn which lines each of its
tests runs. A slip is then tried with the tests that run its line: those that noticed another slip of the file first,
then the cheap ones, then those beside them, until one fails or `--tests-s` are spent.

Results are kept in a folder: the same command goes on where it stopped, and tries again what survived when its tests
have changed. The last lines are the survivors.
"""

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).parents[1]
PACKAGE = "looplm"
DEFAULT_FOLDER = Path(tempfile.gettempdir(), "mutate")
Row = dict[str, Any]
"""Of the results: a slip, and what became of it."""
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # before jax is imported

# What takes long to import is in memory when a process is forked; no device is touched before.
import flax.nnx  # noqa: E402, F401
import jax  # noqa: E402
import optax  # noqa: E402, F401
import orbax.checkpoint  # noqa: E402, F401
import pytest  # noqa: E402
import typer  # noqa: E402
from reached import Test, digest, instrument, record, recorded  # noqa: E402
from slips import Slip, drawn, slips  # noqa: E402

NEAR: list[str] = []
FIRST = 3
"""So many tests that noticed other slips of a file are run before all others."""
RECORD_S = 1200
"""After which a file of tests is given up."""
LIMIT_S = 60
"""A slip makes a program hang when its tests take so much longer than four times what they should."""


class OutOfTime(Exception):
    """The same command goes on."""


class Noticed:
    """A plugin of pytest: stores the first test that fails."""

    def __init__(self, result: Path):
        self.result = result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.result.write_text(report.nodeid)


class Sandbox:
    """A copy of the checkout, in which tests run in processes of their own."""

    def __init__(self, folder: Path, until: float, wanted: Sequence[str] = ()):
        """Args:
        until: time.monotonic() after which nothing is begun.
        wanted: files and folders of tests; those that are near when there are none.
        """
        self.until, self.wanted = until, tuple(wanted)
        self._known: dict[str, list[Test]] = {}
        self.folder, self.root, self.learning = (
            folder.absolute(),
            folder.absolute() / "copy",
            folder.absolute() / "learning",
        )
        for copy in (self.root, self.learning):
            shutil.rmtree(copy, ignore_errors=True)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.root / name)

    def run(self, root: Path, work: Callable[[], int], limit_s: float) -> int | None:
        """The exit code of a process that does some work in a copy; None when it did not end in time."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                self._enter(root)
                code = work()
            finally:
                sys.stdout.flush()
                os._exit(code)
        until = time.monotonic() + limit_s
        ended, status = 0, 0
        while not ended and time.monotonic() < until:
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what it has started
        if not ended:
            os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) if ended else None

    def _enter(self, root: Path) -> None:
        os.setsid()
        output = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        sys.path[0] = str(root)
        compiled = str(self.folder / "compiled")
        os.environ |= {"PYTHONPATH": str(root), "JAX_COMPILATION_CACHE_DIR": compiled}
        jax.config.update("jax_compilation_cache_dir", compiled)  # it read the environment when it was imported

    def near(self, path: str) -> list[Test]:
        """The tests of the files that are near to a file of the package."""
        part = ".".join(Path(path).with_suffix("").parts[:2])
        tests = []
        for file in sorted((self.root / "tests").rglob("test_*.py")):
            name = file.relative_to(self.root).as_posix()
            is_near = name.startswith(mirror(path)) or part in _imported(file)
            if name.startswith(self.wanted) if self.wanted else is_near:
                tests += self._recorded(name)
        return tests

    def _recorded(self, test_file: str) -> list[Test]:
        if test_file not in self._known:
            stored = self.folder / "reached" / test_file.replace("/", "-").replace(".py", ".json")
            stored.parent.mkdir(exist_ok=True)
            if (tests := recorded(self.root, stored)) is None:
                if time.monotonic() > self.until:
                    raise OutOfTime
                if not self.learning.exists():
                    shutil.copytree(self.root, self.learning)
                    instrument(self.learning, PACKAGE)
                print(f"learning what {test_file} runs", flush=True)
                self.run(self.learning, lambda: record(self.root, test_file, stored), RECORD_S)
                tests = recorded(self.root, stored) or []
            self._known[test_file] = tests
        return self._known[test_file]

    def digest(self, tests: Sequence[Test]) -> str:
        """Of the files of tests: whether these are the tests that a slip was tried with."""
        return digest(self.root, {test.file for test in tests}) + str(len(tests))

    def noticed(self, path: str, slip: Slip, tests: Sequence[Test], limit_s: float) -> str:
        """The first test that fails with the slip; "" when none does."""
        file, result = self.root / path, self.folder / "noticed.txt"
        source = file.read_text()
        result.unlink(missing_ok=True)
        try:
            _write(file, slip.applied(source))
            names = [test.name for test in tests]
            arguments = ["-x", "-q", "-p", "no:cacheprovider", *names]
            code = self.run(self.root, lambda: int(pytest.main(arguments, plugins=[Noticed(result)])), limit_s)
        finally:
            _write(file, source)
        if code is None:
            return "it hangs"
        if code == 0:
            return ""
        return result.read_text() if result.exists() else f"no test can run (pytest gives {code})"


def _write(file: Path, source: str) -> None:
    """Python would take the bytecode of a file that has as many bytes and was written in the same second."""
    file.write_text(source)
    Path(cache_from_source(str(file))).unlink(missing_ok=True)


def _imported(file: Path) -> set[str]:
    """Parts of the package, `looplm.train` say, that a file imports from."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                names |= {f"{module}.{alias.name}" for alias in aliases}
    return {".".join(name.split(".")[:2]) for name in names}


def mirror(path: str) -> str:
    """How names of the tests of a file's part of the package begin."""
    return f"tests/{Path(path).parts[1]}/"


def chosen(path: str, slip: Slip, near: Sequence[Test], noticed: Sequence[str], seconds: float) -> list[Test]:
    """The tests that may notice a slip, in the order in which they are run.

    Args:
        noticed: names of tests that noticed another slip of the file, the last one first.
        seconds: what they may take together.
    """
    reached = [test for test in near if test.runs(path, slip.lines)]
    reached = reached or [test for test in near if path in test.lines]  # what runs when the file is imported
    seconds_of = Counter[str]()
    for test in reached:
        seconds_of[test.file] += test.seconds
    first = [test for name in noticed[:FIRST] for test in reached if test.name == name]
    cheap = sorted(reached, key=lambda test: (seconds_of[test.file], test.file, test.seconds))
    beside = [test for test in near if test.file in seconds_of and test.file.startswith(mirror(path))]
    ordered = list({test.name: test for test in (*first, *cheap, *beside)}.values())
    found: list[Test] = []
    made: set[str] = set()
    for test in ordered:
        cost = test.seconds + sum(s for fixture, s in test.fixtures.items() if fixture not in made)
        if cost <= seconds:
            seconds -= cost
            found.append(test)
            made |= test.fixtures.keys()
    return found


class Results:
    """A line of JSON for every slip that was tried, by a key of the slip and the file it is in."""

    def __init__(self, file: Path):
        self.file = file
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self.rows: dict[str, Row] = {row["key"]: row for row in rows}

    def add(self, row: Row) -> None:
        self.rows.pop(row["key"], None)
        self.rows[row["key"]] = row
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def noticed(self, path: str) -> list[str]:
        """The tests that noticed a slip in a file, the last one first."""
        return list(dict.fromkeys(row["noticed"] for row in reversed(self.rows.values()) if row["path"] == path))


def main(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders of the package.")],
    seed: Annotated[int, typer.Option(help="Which slips, and in which order.")] = 0,
    count: Annotated[int | None, typer.Option(help="So many slips, the kinds in turn; all when left out.")] = None,
    tests: Annotated[list[str], typer.Option(help="A file or folder of tests; what is near when left out.")] = NEAR,
    tests_s: Annotated[float, typer.Option(help="Seconds of tests for one slip.")] = 30,
    minutes: Annotated[float, typer.Option(help="Stops after so long; the same command goes on.")] = 1e9,
    control: Annotated[bool, typer.Option(help="Puts nothing in: what is noticed then is a fault of a test.")] = False,
    folder: Annotated[Path, typer.Option(help="For the copy and the results.")] = DEFAULT_FOLDER,
) -> None:
    sandbox = Sandbox(folder, time.monotonic() + 60 * minutes, tests)
    results = Results(folder / "results.jsonl")
    files = sorted({file.resolve() for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))})
    sources = {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}
    picked = drawn([(name, slip) for name, source in sources.items() for slip in slips(source)], seed, count)
    found: list[Row] = []
    with suppress(OutOfTime):
        for path, slip in picked:
            key = hashlib.sha256(f"{path} {slip} {slip.start} {control} {sources[path]}".encode()).hexdigest()
            row = results.rows.get(key)
            if row is None or not row["noticed"]:
                row = attempt(sandbox, results, path, slip, tests_s, dict(key=key) | (row or {}), control)
            found.append(row)
    survivors = [row for row in found if not row["noticed"]]
    print(f"\n{len(found) - len(survivors)} of {len(found)} slips were noticed; {len(picked) - len(found)} are left")
    print("\n".join(map(described, survivors)))


def attempt(sandbox: Sandbox, results: Results, path: str, slip: Slip, tests_s: float, row: Row, control: bool) -> Row:
    """Tries a slip with the tests that may notice it, unless it was with these; returns the row of the results."""
    tests = chosen(path, slip, sandbox.near(path), results.noticed(path), tests_s)
    if row.get("tried_with") == sandbox.digest(tests):
        return row
    if time.monotonic() > sandbox.until:
        raise OutOfTime
    started = time.monotonic()
    tried = slip._replace(new=slip.old) if control else slip
    noticed = sandbox.noticed(path, tried, tests, LIMIT_S + 4 * tests_s) if tests else ""
    row = dict(
        key=row["key"], path=path, line=slip.line, kind=slip.kind, slip=str(slip), noticed=noticed, tests=len(tests),
        tried_with=sandbox.digest(tests), seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip
    results.add(row)
    print(described(row), flush=True)
    return row


def described(row: Row) -> str:
    fate = f"noticed by {row['noticed']}" if row["noticed"] else f"SURVIVED {row['tests']} tests"
    return f"{row['path']}:{row['line']}: {row['kind']}: {row['slip']}: {fate}, {row['seconds']:.0f} s"


if __name__ == "__main__":
    typer.run(main)
