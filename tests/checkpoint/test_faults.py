"""Damage of every kind in the newest checkpoint: found before a step runs, named, and fallen back from."""

import random
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from looplm.train.program import Program
from tests.checkpoint.conftest import trees_of

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "checkpoint_faults.py"))


@pytest.fixture(scope="module")
def bench(program_on: Callable[..., Program], two_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    abstract = trees_of(program_on(1).abstract_state())
    return TOOL["Bench"](two_steps, abstract, tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize("count", [40, pytest.param(2500, marks=pytest.mark.slow)])
def test_every_fault_is_found_and_named(bench: Any, count: int) -> None:
    draw = random.Random(count)
    faults = [*TOOL["FAULTS"], *TOOL["draw_faults"](count - len(TOOL["FAULTS"]), draw)]
    outcomes = [bench.try_one(fault, draw) for fault in faults]
    assert [outcome for outcome in outcomes if not outcome.found] == []
    assert [outcome for outcome in outcomes if not (outcome.names_file or outcome.names_leaf)] == []
    named = Counter(outcome.names_leaf for outcome in outcomes if outcome.fault in {"flip_bit", "truncate", "delete"})
    assert named[True] > named[False]
