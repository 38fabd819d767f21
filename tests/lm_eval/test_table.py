"""What a table says of tasks at several depths."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from looplm.lm_eval.table import Metric, paired_change, table_of

ACC = Metric("cities", "acc", "none")


def results(right: list[int], *, aggregated: float | None = None) -> dict[str, Any]:
    """As the harness gives them; its samples need not be in order."""
    value = float(np.mean(right)) if aggregated is None else aggregated
    samples = [{"doc_id": n, "filter": "none", "acc": float(is_right)} for n, is_right in enumerate(right)]
    return {
        "results": {"cities": {"alias": "cities", "sample_len": 9, "acc,none": value, "acc_stderr,none": 0.125}},
        "samples": {"cities": samples[::-1]},
    }


def test_a_change_is_paired_by_example() -> None:
    shallow, deep = [1, 0] * 40 + [0] * 20, [1, 0] * 40 + [1] * 20
    change = paired_change(ACC, results(deep), results(shallow))
    assert change is not None
    assert change.mean == pytest.approx(0.2)
    # A share of 0.2 of 100: its standard error is 0.04. Unpaired it would be 0.07.
    assert change.low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.012)
    assert change.high == pytest.approx(0.2 + 1.96 * 0.04, abs=0.012)
    assert paired_change(ACC, results(deep), results(deep)) == (0, 0, 0)


def test_what_is_no_mean_over_examples_has_no_change() -> None:
    assert paired_change(ACC, results([1, 0], aggregated=0.9), results([1, 1])) is None
    assert paired_change(Metric("cities", "f1", "none"), results([1, 0]), results([1, 1])) is None
    group = {"results": {"all": {"acc,none": 0.5}}}
    assert paired_change(Metric("all", "acc", "none"), group, group) is None


def test_the_table_holds_every_depth() -> None:
    file = io.StringIO()
    table = table_of({4: results([1, 1]), 1: results([1, 0]), 8: results([0, 0])}, trained=4)
    Console(file=file, width=80).print(table)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in file.getvalue().splitlines() if "│" in line]
    assert [row[:4] for row in cells] == [
        ["cities", "acc", "1", "0.500 ± 0.125"],
        ["", "", "4", "1.000 ± 0.125"],
        ["", "", "8", "0.000 ± 0.125"],
    ]
    assert [row[4][:6] for row in cells] == ["-0.500", "", "-1.000"]
    assert "vs depth 4 (trained)" in file.getvalue()
