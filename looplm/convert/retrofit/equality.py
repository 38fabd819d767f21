"""The table of equality: a looped model at one loop against the stack of the layers that it keeps."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import looplm.api
from looplm.convert.parity import fixed_ids
from looplm.convert.retrofit.cut import Cut
from looplm.convert.retrofit.source import Source
from looplm.convert.retrofit.stages import plain_stack, run_stages

TOLERANCE = 1e-5
"""Of logits that are as large as 1; of larger ones so much times their size."""


class Row(NamedTuple):
    stage: str
    largest: float
    """The largest absolute value in the cut original."""
    difference: float
    """The largest absolute difference from it."""

    @property
    def equal(self) -> bool:
        return self.difference <= TOLERANCE * max(self.largest, 1.0)


def equality(source: Source, layers: Cut, workdir: Path, loops: int = 1) -> list[Row]:
    """Runs both on fixed ids, in float32: what was written and is read back, after so many loops, and the original with
    the kept layers alone. Holds both models."""
    model, params = plain_stack(source, layers.kept)
    ids_BS = fixed_ids(model.vocab_size)
    cut, lm = run_stages(model, params, ids_BS), looplm.api.load(workdir, dtype="float32")
    looped = run_stages(lm.model, lm.params, ids_BS, loops)
    bounds = len(layers.prelude), len(layers.prelude) + len(layers.block)
    states_LBSD = [*np.moveaxis(np.asarray(cut.layers_BLSD), 1, 0), cut.state_BSD]
    pairs = {
        "injection": (states_LBSD[bounds[0]], looped.layers_BLSD[:, 0]),
        f"block, {loops} loop{'s' * (loops > 1)}": (states_LBSD[bounds[1]], looped.state_BSD),
        "logits": (cut.logits_BSV, looped.logits_BSV),
    }
    return [
        Row(stage, float(np.max(np.abs(theirs))), float(np.max(np.abs(theirs - ours))))
        for stage, (theirs, ours) in pairs.items()
    ]


def table(rows: list[Row]) -> Iterator[str]:
    """The rows as text."""
    yield f"{'after':<18}{'largest value':>15}{'max difference':>17}"
    for row in rows:
        yield f"{row.stage:<18}{row.largest:>15.4g}{row.difference:>17.2g}"
