"""Trajectories: what knows its time and step, and what learns from shorter ones."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops, trained_loops
from looplm.config.check.rule import Rules
from looplm.config.schema import (
    FixedDepth,
    MixtureAttention,
    MoE,
    NeverHalting,
    Run,
    ShortcutCrossEntropy,
    SingleCore,
    TrajectoryConditioning,
)


def _conditioning(run: Run) -> Iterator[str]:
    model, name = run.model, "model.conditioning=trajectory"
    if not isinstance(model.conditioning, TrajectoryConditioning):
        return
    for refused, told, remedy in (
        (not isinstance(model.core, SingleCore), "a loop is one step of one state", "model.core=single"),
        (
            model.norm not in ("rms", "unit"),
            "it takes the place of the scale of an RMSNorm, which model.norm is not",
            "model.norm=rms or unit",
        ),
        (model.norm_loops is not None, "a loop's scales follow from its time and step", "model.norm_loops=null"),
        (model.memory is not None, "what was before the sequence has a time of its own", "model.memory=null"),
    ):
        if refused:
            yield f"{name} does not go with this: {told}; use {remedy}"


def _shortcut(run: Run) -> Iterator[str]:
    model, loop, name = run.model, run.loop, "objective.kind=shortcut"
    if not isinstance(run.objective, ShortcutCrossEntropy):
        return
    if not isinstance(model.conditioning, TrajectoryConditioning):
        yield f"{name} draws the steps of loops, which must know them; set model.conditioning=trajectory"
    if not run.objective.short_weight and not run.objective.consistency_weight:
        yield (
            "objective.short_weight and objective.consistency_weight are both 0, and nothing is learned from the short "
            "trajectory; use objective=final"
        )
    if trained_loops(run) == 1:
        yield f"{name} draws fewer loops than loop.num_loops, and there is 1 that learns; use at least 2"
    experts = isinstance(model.feed_forward, MoE) or isinstance(model.attention, MixtureAttention)
    for refused, told, remedy in (
        (not isinstance(loop.depth, FixedDepth), "the full trajectory has one number of loops", "loop.depth=fixed"),
        (loop.growth is not None, "the full trajectory has one number of loops", "loop.growth=null"),
        (
            loop.backprop_growth is not None or trained_loops(run) != max_loops(run),
            "gradients flow through all of both trajectories",
            "loop.backprop_loops=null and loop.backprop_growth=null",
        ),
        (not isinstance(model.halting, NeverHalting), "every token runs both to the end", "model.halting=never"),
        (
            experts,
            "what routers choose on the short trajectory is not counted",
            "a dense model.feed_forward and model.attention",
        ),
    ):
        if refused:
            yield f"{name} does not go with this: {told}; use {remedy}"


RULES: Rules = (_conditioning, _shortcut)
