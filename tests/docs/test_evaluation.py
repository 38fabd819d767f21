"""docs/evaluation.md names the fields of what evaluations keep."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from looplm.metrics.answers import Answers
from looplm.metrics.exit_sweep import ExitSweep
from looplm.metrics.first_states import FirstStates
from looplm.metrics.kv_loss import KVLosses
from looplm.metrics.memory_loss import MemoryLosses
from looplm.metrics.restarts import Restarts
from looplm.metrics.sweep import Sweep

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
OTHER = {"exit_histogram", "exit_threshold", "expected_depth", "exit_loss", "xz_bits_per_byte", "sample", "generations"}
"""Of the depth sweep, for the report: the gate at one threshold, and texts."""


def fields(kind: type[BaseModel], seen: set[type] | None = None) -> set[str]:
    """Names of the fields of a record, and of those in it."""
    names: set[str] = set()
    for name, field in kind.model_fields.items():
        names.add(name)
        inner = [field.annotation, *get_args(field.annotation)]
        for part in [*inner, *(x for one in inner for x in get_args(one))]:
            if isinstance(part, type) and issubclass(part, BaseModel) and part.__name__ not in ("Sample", "Generation"):
                names |= fields(part)
    return names


@pytest.mark.parametrize(
    "kind", [Sweep, ExitSweep, KVLosses, FirstStates, Answers, Restarts, MemoryLosses], ids=lambda kind: kind.__name__
)
def test_all_fields_are_named(kind: type[BaseModel]) -> None:
    named = set(re.findall(r"`(\w+)`", TEXT))
    assert fields(kind) - OTHER - named == {"num_bytes"} & fields(kind)
