"""What a loop costs: the same recipe with one loop fewer, one more, and twice as many."""

from typing import NamedTuple

from looplm.compile.roofline import Roofline
from looplm.config.schema import Run, ScheduledDepth, UniformDepth
from looplm.errors import UserError
from looplm.plan.chips import Chips
from looplm.plan.estimate import Estimate, estimate
from looplm.plan.traced import Traces
from looplm.train.flops import Flops


class Looped(NamedTuple):
    """A recipe at one number of loops."""

    num_loops: int
    estimate: Estimate


def loops(run: Run, chips: Chips, traces: Traces, best: Estimate) -> tuple[list[Looped], str]:
    """Return (rows for R - 1, R, R + 1 and 2 R loops; why there are none).

    Memory, FLOPs and the terms of the time are affine in R, so that two programs give all rows.
    """
    count = run.loop.num_loops
    if isinstance(run.loop.depth, UniformDepth | ScheduledDepth):
        return [], f"loop.depth={run.loop.depth.kind} does not go by loop.num_loops"
    try:
        traced = traces.of(best.recipe.form, {"loop.num_loops": 2 * count})
    except UserError as error:
        return [], str(error)
    twice = estimate(run, chips, traced, best.recipe)
    fewest = max(1, run.loop.backprop_loops or 1)
    numbers = sorted({max(fewest, count - 1), count, count + 1, 2 * count})
    return [Looped(number, _between(best, twice, number / count - 1)) for number in numbers], ""


def _between(one: Estimate, twice: Estimate, share: float) -> Estimate:
    """At a share of the way from R loops to 2 R."""

    def at(a: float, b: float) -> float:
        return a + share * (b - a)

    return one._replace(
        temporary_bytes=at(one.temporary_bytes, twice.temporary_bytes),
        flops_per_token=Flops(*map(at, one.flops_per_token, twice.flops_per_token)),
        time=Roofline(*map(at, one.time, twice.time)),
    )
