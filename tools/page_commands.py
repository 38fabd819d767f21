"""The commands of a page of the documentation, and a run through them as they are written.

    python -m tools.page_commands docs/quickstart.md --folder /tmp/walk

runs all commands of a page one after another, in a folder with links to a checkout, and shows how long each
took. It stops at the first that fails. What follows `needs` in a comment is hardware, a library or a file that
not every machine has; such a command is left out unless `--all` is given.
"""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

ROOT = Path(__file__).parents[1]
PROGRAMS = (
    "looplm",
    "python",
    "python3",
    "make",
    "pip",
    "sbatch",
    "docker",
    "sky",
    "launch/",
    "mkdir",
    "cat",
    "timeout",
)
LINKED = (
    "configs",
    "docs",
    "examples",
    "launch",
    "looplm",
    "tests",
    "tools",
    "README.md",
    "Makefile",
    "pyproject.toml",
)


class Command(NamedTuple):
    """One command of a page."""

    text: str
    """Without its comment; several lines where it gives a file its content (`cat > FILE <<END`)."""
    needs: str = ""
    """What not every machine has."""

    @property
    def is_pattern(self) -> bool:
        """Whether names stand for what a user puts there: `[options]`, a file in capitals, one of several words."""
        return (
            bool(re.search(r"\[|\.\.\.| \| (?!kubectl)|[^\w=-][A-Z][A-Z_]{2,}\b|^\S+$", self.text))
            or "DIR" in self.text
        )


def pages() -> list[Path]:
    """Returns the pages that a user reads."""
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "launch" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]


def commands(text: str) -> Iterator[Command]:
    """Yields the commands of a page: lines of its indented or fenced blocks that begin with a program's name."""
    lines = iter(blocks(text))
    for first in lines:
        if not re.sub(r"^([A-Z_]+=\S+ )+", "", first).startswith(PROGRAMS):
            continue
        line = first
        while line.endswith("\\"):
            line = f"{line[:-1].rstrip()} {next(lines)}"
        command, _, comment = re.sub(r"\s{2,}", "\0", line, count=1).partition("\0")
        if end := re.search(r"<<'?(\w+)", command):
            command = "\n".join([command, *iter(lambda: next(lines), end[1]), end[1]])
        yield Command(command, "".join(re.findall(r"\bneeds (.*)", comment)))


def blocks(text: str) -> Iterator[str]:
    """Yields the lines of code blocks, without those of Python and drawings."""
    fence: str | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            fence = line.removeprefix("```") if fence is None else None
        elif fence in ("", "sh", "bash") or (fence is None and line.startswith("    ")):
            yield line if fence is not None else line.removeprefix("    ").strip()


def walk(page: Path, folder: Path, everything: bool = False) -> Iterator[tuple[Command, float, float]]:
    """Runs a page's commands in `folder` and yields each with the seconds that it took, and those of all cores.

    `looplm` and `python` are those of this interpreter, with this checkout. Raises subprocess.CalledProcessError.
    """
    bin = folder / ".bin"
    bin.mkdir(parents=True, exist_ok=True)
    (bin / "looplm").write_text(f'#!/bin/sh\nexec {sys.executable} -m looplm "$@"\n')
    (bin / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for name in ("looplm", "python"):
        (bin / name).chmod(0o755)
    for name in LINKED:
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    for command in commands(page.read_text()):
        if not everything and command.needs:
            continue
        began, used = time.perf_counter(), processor_s()
        subprocess.run(
            ["bash", "-euc", command.text], cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL
        )
        yield command, time.perf_counter() - began, processor_s() - used


def processor_s() -> float:
    """Seconds that cores have worked for processes which this one started and which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    import typer

    def main(
        page: Annotated[Path, typer.Argument(help="A page of the documentation.")],
        folder: Annotated[Path, typer.Option(help="Where runs are made; one that is there goes on.")],
        all: Annotated[bool, typer.Option(help="Also what needs something that not every machine has.")] = False,
    ) -> None:
        """Run the commands of a page as they are written."""
        for command, seconds, cores in walk(page, folder, all):
            print(f"{seconds:.1f} s ({cores:.1f} s of all cores): {command.text.splitlines()[0]}", flush=True)

    typer.run(main)
