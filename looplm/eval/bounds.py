"""Bounds that hold for any number of observations."""

import math

import numpy as np


def clopper_pearson(successes: np.ndarray, number: int, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact interval (low, high) of a share, of so many successes among independent trials."""
    from scipy.stats import beta  # here: training never asks, and scipy takes long to import

    tail = (1 - coverage) / 2
    low = beta.ppf(tail, successes, number - successes + 1)
    high = beta.ppf(1 - tail, successes + 1, number - successes)
    return np.where(successes == 0, 0.0, low), np.where(successes == number, 1.0, high)


def hoeffding_bentkus(mean: float, number: int, error: float) -> float:
    """Return the upper bound of an expectation that is wrong with probability `error` at most (arXiv 2110.01052).

    mean: of so many independent observations, all in [0, 1].
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    def p_value(expectation: float) -> float:
        a = min(mean, expectation)
        inner = 0.0 if a == 0 else a * math.log(a / expectation)
        divergence = inner + (0.0 if a == 1 else (1 - a) * math.log((1 - a) / (1 - expectation)))
        bentkus = math.e * binom.cdf(math.ceil(number * mean), number, expectation)
        return min(math.exp(-number * divergence), bentkus)

    top = 1 - 1e-9
    if mean >= top or p_value(top) > error:
        return 1.0
    return float(brentq(lambda expectation: p_value(expectation) - error, max(mean, 1e-9), top))
