"""How often the shared block runs, and how the gradient goes through it."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from looplm.config.schema.base import Section


class FixedDepth(Section):
    """Every training step runs `loop.num_loops` loops."""

    kind: Literal["fixed"] = "fixed"


class UniformDepth(Section):
    """Uniform in a range, both ends included."""

    kind: Literal["uniform"] = "uniform"
    min_loops: PositiveInt = 1
    """The fewest loops."""
    max_loops: PositiveInt
    """The most loops."""


class PoissonDepth(Section):
    """Poisson with mean `loop.num_loops`, at least 1 (arXiv 2604.12946)."""

    kind: Literal["poisson"] = "poisson"


class LogNormalPoissonDepth(Section):
    """1 + Poisson(rate), log rate normal, mean of the rate `loop.num_loops`, or `loop.backprop_loops` where that is
    larger (arXiv 2502.05171)."""

    kind: Literal["lognormal_poisson"] = "lognormal_poisson"
    sigma: PositiveFloat = 0.5
    """Standard deviation of the logarithm of the rate."""


class ScheduledDepth(Section):
    """A fixed depth that changes over steps: in jumps, or growing linearly from the first entry to the last."""

    kind: Literal["scheduled"] = "scheduled"
    loops: dict[int, PositiveInt]
    """{first step (from 0): loops}; must hold step 0."""
    interpolate: bool = False
    """Grow linearly (rounded) between the entries."""


Depth = Annotated[
    FixedDepth | UniformDepth | PoissonDepth | LogNormalPoissonDepth | ScheduledDepth, Field(discriminator="kind")
]


class Growth(Section):
    """A number that grows from 1 to its full value over the first steps: max(1, ceil(full * f(step / steps))), steps
    counted from 0 (arXiv 2511.07384)."""

    steps: PositiveInt
    """From so many steps on it has its full value."""
    shape: Literal["linear", "sqrt"] = "linear"
    """f(p) = p, or 1 - sqrt(1 - p), which is slow at first."""


class Loop(Section):
    """How often the shared block runs, and how the gradient goes through it."""

    num_loops: PositiveInt
    """R: the depth of evaluation and generation, and of training when `depth` is fixed; the mean of a Poisson law."""
    depth: Depth = FixedDepth()
    """The number of loops in training."""
    depth_per: Literal["batch", "sequence"] = "batch"
    """Whether all sequences of a step share a drawn depth."""
    backprop_loops: PositiveInt | None = None
    """Gradient flows through the last so many loops; None means all (needs a bounded depth)."""
    growth: Growth | None = None
    """How `num_loops`, as a fixed depth or as the mean of a Poisson law, grows in training. The gradient's window is
    then no larger than the mean of the step. None: it does not grow."""
    backprop_growth: Growth | None = None
    """How `backprop_loops`, or all loops when that is None, grow in training."""
    inner_growth: Growth | None = None
    """How the inner loops that have a gradient (`model.core.inner_backprop`, or all of them when that is None) grow in
    training: every entry of theirs is at most what the largest has grown to."""
    remat: Literal["none", "layer", "loop", "names", "offload"] = "loop"
    """What the backward pass recomputes. `none`: nothing. `layer`: every layer. `loop`: every loop and in it every
    layer. `names`: as `loop`, but the branches' outputs of the loop in work are kept. `offload`: as `loop`, with the
    loops' states in host memory."""
    unroll: bool = False
    """Write the loops and layers out in the program: faster on a CPU, slower to compile; never on large models."""
