"""How many loops run, and through how many of them the gradient flows."""

from collections.abc import Iterator

from looplm.config.check.rule import Rules
from looplm.config.schema import FixedDepth, Run, ScheduledDepth, TwoSpeedCore, UniformDepth


def _depth(run: Run) -> Iterator[str]:
    depth, loop = run.loop.depth, run.loop
    if isinstance(depth, UniformDepth) and depth.min_loops > depth.max_loops:
        yield f"loop.depth.min_loops={depth.min_loops} is above loop.depth.max_loops={depth.max_loops}; swap them"
    if isinstance(depth, ScheduledDepth) and 0 not in depth.loops:
        yield f"loop.depth.loops={depth.loops} says nothing about the first step; add an entry for step 0"
    largest = max_loops(run)
    if largest is None and loop.backprop_loops is None:
        yield f"loop.depth.kind={depth.kind} has no largest depth; set loop.backprop_loops, e.g. {loop.num_loops}"
    if largest and loop.backprop_loops and loop.backprop_loops > largest:
        yield f"loop.backprop_loops={loop.backprop_loops} is more than the {largest} loops that run; use at most that"
    if loop.depth_per == "sequence" and isinstance(depth, FixedDepth | ScheduledDepth):
        yield f"loop.depth_per=sequence has nothing to draw with loop.depth.kind={depth.kind}; leave it at batch"
    if isinstance(depth, ScheduledDepth) and not depth.interpolate and max(depth.loops) >= run.num_steps:
        yield (
            f"loop.depth.loops={depth.loops} has an entry at step {max(depth.loops)}, and num_steps={run.num_steps} "
            "ends before it; take it out, or train longer"
        )


def _growth(run: Run) -> Iterator[str]:
    depth, loop = run.loop.depth, run.loop
    if loop.growth is not None and isinstance(depth, UniformDepth | ScheduledDepth):
        yield (
            f"loop.growth.steps={loop.growth.steps} has no part in loop.depth.kind={depth.kind}, whose loops do not "
            "follow loop.num_loops; use fixed, poisson or lognormal_poisson, or leave loop.growth out"
        )
    if loop.inner_growth is not None and not isinstance(run.model.core, TwoSpeedCore):
        yield (
            f"loop.inner_growth.steps={loop.inner_growth.steps} is of inner loops, and model.core="
            f"{run.model.core.kind} has none; use loop.backprop_growth, or model.core=two_speed"
        )
    for name in ("growth", "backprop_growth", "inner_growth"):
        growth = getattr(loop, name)
        if growth is not None and growth.steps > run.num_steps:
            yield (
                f"loop.{name}.steps={growth.steps} are more than num_steps={run.num_steps}, so that the full value is "
                "never reached; use at most that"
            )


def max_loops(run: Run) -> int | None:
    """The largest number of loops that a training step of this run can have; None for a law without a bound."""
    match run.loop.depth:
        case FixedDepth():
            return run.loop.num_loops
        case UniformDepth(max_loops=largest):
            return largest
        case ScheduledDepth(loops=loops):
            return max(loops.values())
        case _:
            return None


def trained_loops(run: Run) -> int | None:
    """The most loops of a step that carry a gradient; None for all of a law without a bound, which is refused."""
    return min((n for n in (run.loop.backprop_loops, max_loops(run)) if n is not None), default=None)


RULES: Rules = (_depth, _growth)
