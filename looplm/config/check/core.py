"""The core: what its numbers and the other parts of the model allow."""

from collections.abc import Iterator

from looplm.config.check.rule import Rules
from looplm.config.schema import MixtureAttention, MoE, Run, TwoSpeedCore


def _inner_loops(run: Run) -> Iterator[str]:
    core = run.model.core
    if not isinstance(core, TwoSpeedCore):
        return
    given, count = core.inner_backprop, core.inner_loops
    trained = given if isinstance(given, tuple) else () if given is None else (given,)
    if given == ():
        yield "model.core.inner_backprop=[] says it of no loop; use e.g. [1], or null for all inner loops"
    if not count and (given is not None or core.high_layers is not None):
        name = "inner_backprop" if given is not None else "high_layers"
        yield (
            f"model.core.{name} has no part in model.core.inner_loops=0, where the low state stays as it is; use "
            "more inner loops, or leave it out"
        )
    elif trained and max(trained) > count:
        yield (
            f"model.core.inner_backprop={max(trained)} is more than the {count} of model.core.inner_loops; use at "
            "most that"
        )
    if isinstance(given, tuple) and run.loop.depth_per == "sequence":
        yield (
            f"model.core.inner_backprop={list(given)} differs from loop to loop, and loop.depth_per=sequence has "
            "sequences at different loops at a time; use one number, or loop.depth_per=batch"
        )


def _parts(run: Run) -> Iterator[str]:
    """What is reported or numbered once a loop, of one block."""
    model = run.model
    if not isinstance(model.core, TwoSpeedCore):
        return
    if isinstance(model.feed_forward, MoE) or isinstance(model.attention, MixtureAttention):
        yield (
            "model.core=two_speed calls a block several times a loop, and experts are balanced by one call; use a "
            "dense model.feed_forward and model.attention, or model.core=single"
        )
    if model.value_embedding is not None:
        yield (
            "model.value_embedding counts layers of one block, and "
            "model.core=two_speed may have two; leave model.value_embedding out"
        )
    if model.residual_step != "one":
        yield (
            f"model.residual_step={model.residual_step} counts loops of one block; use one with model.core=two_speed"
        )


RULES: Rules = (_inner_loops, _parts)
