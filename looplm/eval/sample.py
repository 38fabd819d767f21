"""A stretch of held-out text with what the model made of every token, for people to look at."""

from collections.abc import Sequence

import numpy as np

from looplm.data.held_out import HeldOut
from looplm.eval.score import TokenScores
from looplm.metrics.sweep import Sample

SAMPLE_TOKENS = 480
DECIMALS = 4
"""Of stored losses."""


def take_sample(
    held_out: HeldOut,
    batch: dict[str, np.ndarray],
    scores: TokenScores,
    depths: Sequence[int],
    exits_BS: np.ndarray | None,
) -> Sample | None:
    """Return the first scored tokens of the batch's first scored document, as far as the batch holds it.

    Args:
        batch: of the evaluation loader.
        depths: whose losses are kept.
        exits_BS: the loop after which every token is predicted, from 1; None without an exit gate.

    Returns None where the batch scores nothing. What is said of a token is how it was predicted, from those before it.
    """
    scored_BS = batch["labels"] >= 0
    if not scored_BS.any():
        return None
    first = batch["documents"][scored_BS][0]
    places = np.nonzero(scored_BS & (batch["documents"] == first))
    rows, columns = (axis[:SAMPLE_TOKENS] for axis in places)
    nll_RT = scores.nll_RBS[:, rows, columns]
    exits_T = None if exits_BS is None else exits_BS[rows, columns]
    return Sample(
        pieces=held_out.pieces(batch["labels"][rows, columns]),
        exit_depth=None if exits_T is None else exits_T.tolist(),
        loss=None if exits_T is None else _rounded(np.take_along_axis(nll_RT, exits_T[None] - 1, axis=0)[0]),
        depths=list(depths),
        loss_by_depth=[_rounded(nll_RT[depth - 1]) for depth in depths],
    )


def _rounded(values_T: np.ndarray) -> list[float]:
    return [round(value, DECIMALS) for value in values_T.tolist()]
