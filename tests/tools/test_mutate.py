"""Slips are what they say, fall where they may, and one that a test can see is seen; the checkout is not touched."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.slips import drawn, slips

ROOT = Path(__file__).parents[2]
SOURCE = '''\
"""A docstring with 1 + 1."""

from typing import Literal


def f(x: int | None, y=3) -> Literal[1]:
    """Another, 2 > 1."""
    assert x > 0, "never"
    if x and not y:
        raise ValueError(f"{x + y} is 1")
    total = g(x, key=fold_in(key, 1))
    total += jnp.sum(stop_gradient(x) * 2, axis=-1).astype(jnp.float32)
    h(total)
    return jnp.where(y >= 2, total[1 : len(x)], a | b)
'''


def test_every_kind_of_slip_is_made_and_nothing_that_is_only_said() -> None:
    found = [str(slip) for slip in slips(SOURCE)]
    assert sorted(found) == sorted(
        [
            "3  ->  4", "x and not y  ->  (not (x and (not y)))", "x and not y  ->  (x or not y)", "not y  ->  y",
            "g(x, key=fold_in(key, 1))  ->  g(x)", "fold_in(key, 1)  ->  key", "1  ->  2", "1  ->  2", "2  ->  3",
            "total += jnp.sum(stop_gradient(x) * 2, axis=-1).astype(jnp.float32)  ->  pass",
            "jnp.sum(stop_gradient(x) * 2, axis=-1).astype(jnp.float32)  ->  jnp.sum(stop_gradient(x) * 2, axis=-1)",
            "jnp.sum(stop_gradient(x) * 2, axis=-1)  ->  jnp.sum(stop_gradient(x) * 2)", "jnp.sum  ->  jnp.mean",
            "stop_gradient(x) * 2  ->  (stop_gradient(x) / 2)", "stop_gradient(x)  ->  x",
            "jnp.float32  ->  jnp.bfloat16",
            "h(total)  ->  pass", "y >= 2  ->  (y > 2)", "2  ->  3", "1  ->  2", "a | b  ->  a",
            "1 : len(x)  ->  1:len(x) - 1",
            "jnp.where(y >= 2, total[1 : len(x)], a | b)  ->  jnp.where(y >= 2, a | b, total[1:len(x)])",
        ]
    )  # fmt: skip


@pytest.mark.slow
def test_slips_of_the_whole_package_can_be_read_and_differ() -> None:
    for file in sorted((ROOT / "looplm").rglob("*.py"))[::7]:
        source = file.read_text()
        for slip in slips(source)[::5]:
            changed = slip.applied(source)
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), (file, slip)


def test_a_seed_draws_the_kinds_in_turn() -> None:
    candidates = [("file", slip) for slip in slips(SOURCE)]
    first, again, other = (drawn(candidates, seed, 8) for seed in (0, 0, 1))
    assert first == again != other
    assert len({slip.kind for _, slip in first}) == 8
    assert len(drawn(candidates, 0, None)) == len(candidates)


@pytest.mark.slow
def test_what_a_test_sees_is_noticed_and_nothing_in_the_checkout_changes(tmp_path: Path) -> None:
    file = ROOT / "looplm/optim/schedule.py"
    before, command = (
        file.read_bytes(),
        [sys.executable, ROOT / "tools/mutate.py", file, "--count", "3", "--folder", tmp_path],
    )
    command += ["--tests", "tests/optim/test_schedule.py"]
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert file.read_bytes() == before
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 3, "what was tried is not tried again"
    assert sum(bool(row["noticed"]) for row in rows) >= 2
    assert (
        said[1].strip().startswith(f"{sum(bool(row['noticed']) for row in rows)} of 3 slips were noticed; 0 are left")
    )
