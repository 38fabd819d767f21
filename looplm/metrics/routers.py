"""From the loads of experts to the numbers of `metrics.jsonl`; on the host.

Loads are relative to the mean over the experts of a visit, so that 1 is even. A section's visits are the prelude's one,
the loops of the block that ran, and those that the coda read.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from looplm.config.schema import Place

if TYPE_CHECKING:  # the report uses this file, and starts without jax
    from looplm.metrics.step import Routers, RouterSums


def router_numbers(routers: "Routers", loops: Sequence[int] | None) -> dict[str, float]:
    """Names and values; for experts of attentions, `attention/` in place of `moe/`.

    - `moe/load_max`, `moe/load_min`: of all visits and layers; with `_loop_{t}` those of the block's loop t.
    - `moe/changed_loop_{t}`: share of the experts of a token that the loop before had not chosen; not of the first
      loop after those without gradient, whose choices are not kept.
    - `moe/dead`: experts of all layers that no visit used.
    - `moe/dropped`: choices for which the capacity left no place; of feed-forwards only.

    Args:
        loops: numbers (from 1) of the last iterations of the window, which are those that ran; None where sequences
            differ.
    """
    result = _numbers("moe", routers.moe, loops) | _numbers("attention", routers.attention, loops)
    if routers.moe:
        result["moe/dropped"] = sum(int(sums.dropped) for sums in routers.moe.values())
    return result


def _numbers(branch: str, stacks: Mapping[Place, "RouterSums"], loops: Sequence[int] | None) -> dict[str, float]:
    if not stacks:
        return {}
    relative = {place: relative_load(sums.load_TLE) for place, sums in stacks.items()}
    result = {
        f"{branch}/load_max": max(float(np.nanmax(load)) for load in relative.values()),
        f"{branch}/load_min": min(float(np.nanmin(load)) for load in relative.values()),
        f"{branch}/dead": float(sum(np.sum(sums.load_TLE.sum(axis=0) == 0) for sums in stacks.values())),
    }
    if "block" in stacks and loops is not None:
        block, ran = stacks["block"], slice(-len(loops), None)
        by_loop = zip(loops, relative["block"][ran], block.load_TLE[ran], block.kept_T[ran], strict=True)
        for t, load_LE, choices_LE, kept in by_loop:
            result |= {
                f"{branch}/load_max_loop_{t}": float(load_LE.max()),
                f"{branch}/load_min_loop_{t}": float(load_LE.min()),
            }
            if t > loops[0]:
                result[f"{branch}/changed_loop_{t}"] = 1 - float(kept) / float(choices_LE.sum())
    return result


def relative_load(load_TLE: ArrayLike) -> np.ndarray:
    """Over the mean of a visit's experts; NaN in visits that did not take place."""
    wide_TLE = np.asarray(load_TLE, np.float64)
    with np.errstate(invalid="ignore"):
        return wide_TLE / wide_TLE.mean(axis=-1, keepdims=True)
