"""The layers of a range that do the least: the run of layers whose input and output are nearest in angle is left out.

d(l, n) = arccos(cos(x_l, x_{l+n})) / pi        x_l: what enters layer l; mean over tokens (arXiv 2403.17887)
"""

import numpy as np

from looplm.convert.retrofit.cut import Origin


def angular_distances(layers_NSD: np.ndarray, apart: int) -> np.ndarray:
    """d(l, apart) for every l that has a layer so far after it, in 0..1.

    layers_NSD: what enters every layer, and at last what leaves the last one; S counts all tokens.
    """
    x_NSD = layers_NSD.astype(np.float64)
    unit_NSD = x_NSD / np.maximum(np.linalg.norm(x_NSD, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    cosine_MS = np.sum(unit_NSD[: len(x_NSD) - apart] * unit_NSD[apart:], axis=-1)
    return np.mean(np.arccos(np.clip(cosine_MS, -1.0, 1.0)), axis=1) / np.pi


def nearest(layers: range, count: int, layers_NSD: np.ndarray) -> list[Origin]:
    """So many layers of the range: all but the run of the others with the smallest distance across it.

    layers_NSD: see `angular_distances`, of all layers of the model.
    """
    left_out = len(layers) - count
    if not left_out:
        return [(i,) for i in layers]
    across_M = angular_distances(layers_NSD[layers.start : layers.stop + 1], left_out)
    first = layers.start + int(np.argmin(across_M))
    return [(i,) for i in layers if not first <= i < first + left_out]
