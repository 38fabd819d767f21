"""From the loads of experts to the numbers of `metrics.jsonl`; on the host.

Loads are relative to the mean over the experts of a visit, so that 1 is even. A section's visits are the prelude's one,
the loops of the block that ran, and those that the coda read.
"""

from collections.abc import Sequence

import numpy as np

BRANCHES = ("moe", "attention")
"""Feed-forwards with experts, and attentions with some: names of both begin so."""
LOAD, KEPT = "/load/", "/kept/"
"""What a step returns of every section, after the branch: choices (visits, layers, experts), and how many of them the
loop before had made for the same token (visits,)."""


def router_numbers(metrics: dict[str, np.ndarray], loops: Sequence[int] | None) -> dict[str, float]:
    """Names and values; for experts of attentions, `attention/` in place of `moe/`.

    - `moe/load_max`, `moe/load_min`: of all visits and layers; with `_loop_{t}` those of the block's loop t.
    - `moe/changed_loop_{t}`: share of the experts of a token that the loop before had not chosen; not of the first
      loop after those without gradient, whose choices are not kept.
    - `moe/dead`: experts of all layers that no visit used.

    Args:
        loops: numbers (from 1) of the last iterations of the window, which are those that ran; None where sequences
            differ.
    """
    first, second = BRANCHES
    return _numbers(first, metrics, loops) | _numbers(second, metrics, loops)


def _numbers(branch: str, metrics: dict[str, np.ndarray], loops: Sequence[int] | None) -> dict[str, float]:
    prefix = f"{branch}{LOAD}"
    loads = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    if not loads:
        return {}
    relative = {place: relative_load(load) for place, load in loads.items()}
    result = {
        f"{branch}/load_max": max(float(np.nanmax(load)) for load in relative.values()),
        f"{branch}/load_min": min(float(np.nanmin(load)) for load in relative.values()),
        f"{branch}/dead": float(sum(np.sum(load.sum(axis=0) == 0) for load in loads.values())),
    }
    if "block" in loads and loops is not None:
        ran = zip(loops, relative["block"][-len(loops) :], loads["block"][-len(loops) :], strict=True)
        kept_T = metrics[f"{branch}{KEPT}block"][-len(loops) :]
        for (t, load_LE, choices_LE), kept in zip(ran, kept_T, strict=True):
            result |= {
                f"{branch}/load_max_loop_{t}": float(load_LE.max()),
                f"{branch}/load_min_loop_{t}": float(load_LE.min()),
            }
            if t > loops[0]:
                result[f"{branch}/changed_loop_{t}"] = 1 - float(kept) / float(choices_LE.sum())
    return result


def relative_load(load_TLE: np.ndarray) -> np.ndarray:
    """Over the mean of a visit's experts; NaN in visits that did not take place."""
    load_TLE = load_TLE.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return load_TLE / load_TLE.mean(axis=-1, keepdims=True)
