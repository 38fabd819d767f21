"""Confidence intervals by resampling whole documents: tokens of one document are not independent."""

import numpy as np

RESAMPLES = 2000
MOST_GROUPS = 4096
"""Above this many documents, neighbours are pooled: the interval is as good and the table stays small."""


def resampled_means(sums_GR: np.ndarray, counts_G: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Means over tokens in `RESAMPLES` random draws of documents with replacement.

    Args:
        sums_GR: per document, sums of R quantities over its tokens.
        counts_G: per document, the number of tokens.

    Returns:
        (RESAMPLES, R) float64. All R columns of a row share the draw, so differences of columns are paired.
    """
    if (pool := -(-len(counts_G) // MOST_GROUPS)) > 1:
        starts = np.arange(0, len(counts_G), pool)
        sums_GR, counts_G = np.add.reduceat(sums_GR, starts), np.add.reduceat(counts_G, starts)
    keep = counts_G > 0
    sums_GR, counts_G = sums_GR[keep], counts_G[keep]
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(counts_G), np.full(len(counts_G), 1 / len(counts_G)), size=RESAMPLES)
    return (draws @ sums_GR) / (draws @ counts_G)[:, None]


def interval(samples: np.ndarray, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The central interval of bootstrap samples along the first dim."""
    tail = (1 - coverage) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high
