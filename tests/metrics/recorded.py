"""What runs recorded that learn and that do not: the judged columns; settings: `docs/decisions.md`."""

from pathlib import Path

import numpy as np

from looplm.metrics.health import Row

RECORDED = np.load(Path(__file__).with_name("recorded.npz"))
"""RUN:COLUMN -> one value a step."""
RUNS = sorted({name.partition(":")[0] for name in RECORDED})


def rows_of(run: str) -> list[Row]:
    columns = {name.partition(":")[2]: RECORDED[name].tolist() for name in RECORDED if name.startswith(f"{run}:")}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
