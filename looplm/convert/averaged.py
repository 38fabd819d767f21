"""The moving average of a run's weights, read leaf by leaf."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from looplm.checkpoint.digest import named_leaves
from looplm.checkpoint.seal import Seal
from looplm.checkpoint.stored_rows import StoredRows
from looplm.config.schema import Run
from looplm.model.functional import FunctionalLM
from looplm.objective import build_objective
from looplm.optim.build import build_guarded
from looplm.optim.ema import abstract_ema
from looplm.optim.learning import learning_of

Rows = Callable[[str, int | tuple[int, int] | None], np.ndarray]
"""Of the weights of a checkpoint; see `StoredRows`."""


def averaged_rows(run: Run, checkpoint: Path, seal: Seal) -> Rows:
    """Rows of the average, and of the weights that do not learn and so have none."""
    lm, trains = FunctionalLM(run.model), build_objective(run.objective).trains
    shapes = learning_of(run.optim, lm, trains).only(lm.shapes)
    # Weights and averages are leaves of two trees of the same order.
    state = abstract_ema(build_guarded(run.optim, lm, run.num_steps, trains), lm.shapes, shapes)
    stored = dict(zip(named_leaves(shapes), named_leaves(state), strict=True))
    weights, averages = StoredRows(checkpoint, seal), StoredRows(checkpoint, seal, item="opt_state")

    def row(path: str, layer: int | tuple[int, int] | None) -> np.ndarray:
        return averages(stored[path], layer) if path in stored else weights(path, layer)

    return row
