"""The script for a GPU: its tables keep their time and survive what fails; the whole is rehearsed on a CPU."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from looplm.errors import UserError
from tools.gpu.table import Row, Table, write

ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds that pass when something is measured."""

    now = 0.0

    def takes(self, seconds):
        def measure():
            self.now += seconds
            return [f"{seconds:g} s"]

        return measure

    def __call__(self):
        return self.now


def fails():
    raise ValueError("no | room\nmore")


def refuses():
    raise UserError("model.x=1 is not for this device")


def test_what_fails_is_a_row_and_the_rest_goes_on():
    def broken():
        yield Row(("a",), Clock().takes(1))
        raise RuntimeError("no such section")

    rows = [Row(("b",), fails), Row(("c",), refuses), Row(("d",), Clock().takes(2))]
    out = io.StringIO()
    tables = [Table("One", "first", ("x", "y"), broken, 1.0), Table("Two", "", ("x", "y"), lambda: iter(rows), 1.0)]
    assert write(tables, out, budget_s=100) == 2  # a refusal is no failure
    assert [line for line in out.getvalue().splitlines() if line.startswith("|") and "---" not in line] == [
        "| x | y |",
        "| a | 1 s |",
        "| fails: RuntimeError: no such section |  |",
        "| x | y |",
        "| b | fails: ValueError: no / room |",
        "| c | is refused: model.x=1 is not for this device |",
        "| d | 2 s |",
    ]


def test_a_section_has_its_share_of_the_time_and_what_others_left():
    clock, out = Clock(), io.StringIO()

    def rows(*seconds):
        return lambda: iter([Row((str(s),), clock.takes(s)) for s in seconds])

    tables = [
        Table("Slow", "", ("x", "y"), rows(30, 31, 32, 33), 0.5),
        Table("Quick", "", ("x", "y"), rows(1), 0.25),
        Table("Last", "", ("x", "y"), rows(5, 6), 0.25),
    ]
    assert write(tables, out, budget_s=100, clock=clock) == 0
    text = out.getvalue()
    assert re.findall(r"\| (\d+) s \|", text) == ["30", "31", "1", "5", "6"]
    assert "2 more were not begun" in text.partition("Quick")[0]


@pytest.mark.slow
def test_all_of_it_is_rehearsed_on_a_cpu():
    command = [sys.executable, "-m", "tools.bench_gpu", "--dry"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    text = found.stdout
    assert text.count("\n### ") == 4
    for row in (
        r"150 \| 16 \| causal, packed \| triton \| \d", r"150 \| 16 \| window 40 \| triton \| is refused",
        r"dense \| blockwise \| \d", r"experts \| blockwise \| \d", r"ouro \| not run", r"64 \| [\d,]+ \|",
    ):  # fmt: skip
        assert re.search(row, text), row
