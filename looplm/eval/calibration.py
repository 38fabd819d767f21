"""A temperature for every depth, fitted on one half of the documents and measured on the other.

Loops that were trained to be read late are read with false confidence early, so that plain truncation overstates what
depth is worth (arXiv 2609.19934).
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from looplm.eval.reading import INVERSE_TEMPERATURES

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline

FINE = np.linspace(INVERSE_TEMPERATURES[0], INVERSE_TEMPERATURES[-1], 3001)


@cache
def _spline() -> "CubicSpline":
    """The mean loss is smooth in the inverse temperature: between those that were measured it is a spline of them."""
    from scipy.interpolate import CubicSpline  # here: training never asks, and scipy takes long to import

    return CubicSpline(INVERSE_TEMPERATURES, np.eye(len(INVERSE_TEMPERATURES)))


def calibrated(tempered_GRK: np.ndarray, tokens_G: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Score every document at the temperatures that fit the other half of the documents best.

    Args:
        tempered_GRK: by document, sums of losses at `INVERSE_TEMPERATURES`.
        tokens_G: how many tokens each has, none of them 0.

    Returns (by document, sums of calibrated losses (G, R); temperatures (2, R), of documents 0, 2, .. and of 1, 3, ..);
    None for fewer than two documents.
    """
    num_documents, num_loops, _ = tempered_GRK.shape
    if num_documents < 2:
        return None
    losses_GR, temperatures_2R = np.empty((num_documents, num_loops)), np.empty((2, num_loops))
    for half in (0, 1):
        fitted_RK = tempered_GRK[1 - half :: 2].sum(axis=0) / tokens_G[1 - half :: 2].sum()
        inverse_R = FINE[np.argmin(_spline()(FINE) @ fitted_RK.T, axis=0)]
        losses_GR[half::2] = np.einsum("GRK,RK->GR", tempered_GRK[half::2], _spline()(inverse_R))
        temperatures_2R[half] = 1 / inverse_R
    return losses_GR, temperatures_2R
