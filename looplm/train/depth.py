"""How many loops a training step runs: a function of (seed, step), the same on every host."""

import math
from bisect import bisect_left
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from looplm.config.check import trained_loops
from looplm.config.schema import (
    FixedDepth,
    Growth,
    LogNormalPoissonDepth,
    PoissonDepth,
    Run,
    ScheduledDepth,
    TwoSpeedCore,
    UniformDepth,
)
from looplm.model.depth import Depth

PURPOSE = 1
"""Keeps this stream of random numbers apart from others with the same seed."""


class DepthSchedule:
    """Draws the loops of every step and splits them into a detached prefix and a trained suffix."""

    def __init__(self, run: Run):
        self.run = run
        self.window = trained_loops(run) or 1  # config.check: a law without a bound comes with a gradient window
        self.per_sequence = run.loop.depth_per == "sequence"

    @property
    def is_planned(self) -> bool:
        """Whether the loops of a step are no draw, and change in the course of the training."""
        depth, loop = self.run.loop.depth, self.run.loop
        return isinstance(depth, ScheduledDepth) or (isinstance(depth, FixedDepth) and loop.growth is not None)

    def mean_loops(self, step: int) -> int:
        """The fixed depth, or the mean of a Poisson law, in a step (from 0)."""
        return grown(self.run.loop.num_loops, self.run.loop.growth, step)

    def window_of(self, step: int) -> int:
        """The most loops of a step (from 0) that carry a gradient."""
        window = grown(self.window, self.run.loop.backprop_growth, step)
        return window if self.run.loop.growth is None else min(window, self.mean_loops(step))

    def num_loops(self, step: int) -> np.ndarray:
        """Loops of every sequence of the global batch, or of all of them: int (B,) or (1,)."""
        run, depth = self.run, self.run.loop.depth
        size = run.data.batch_tokens // run.data.sequence_length if self.per_sequence else 1
        generator = np.random.default_rng((run.seed, PURPOSE, step))
        match depth:
            case FixedDepth():
                return np.full(size, self.mean_loops(step))
            case UniformDepth():
                return generator.integers(depth.min_loops, depth.max_loops, size=size, endpoint=True)
            case PoissonDepth():
                return np.maximum(generator.poisson(self.mean_loops(step), size), 1)
            case LogNormalPoissonDepth(sigma=sigma):
                # The official code has max(mean - window, 0) + window here, so the window is the least mean.
                mean = max(self.mean_loops(step), self.window_of(step))
                rate = generator.lognormal(math.log(mean) - sigma**2 / 2, sigma, size)
                return generator.poisson(rate) + 1
            case ScheduledDepth():
                return np.full(size, scheduled(depth, step))

    def draw(self, step: int) -> np.ndarray:
        """(loops without gradient, loops with gradient): int32 (2,), or (B, 2) where sequences differ."""
        loops = self.num_loops(step)
        trained = np.minimum(loops, self.window_of(step))
        drawn = np.stack([loops - trained, trained], axis=-1).astype(np.int32)
        return drawn if self.per_sequence else drawn[0]

    def inner_backprop(self, step: jax.Array) -> jax.Array | None:
        """The most inner loops of a loop that carry a gradient in a step (from 0), int32 (), inside the traced step;
        None where that does not grow."""
        growth, core = self.run.loop.inner_growth, self.run.model.core
        if growth is None or not isinstance(core, TwoSpeedCore):
            return None
        full = largest_inner(core)
        # The step from which on there are so many, found before the program is traced: it counts in whole numbers.
        first = [bisect_left(range(growth.steps), n, key=partial(grown, full, growth)) for n in range(2, full + 1)]
        return 1 + jnp.sum(step >= jnp.array(first, jnp.int32), dtype=jnp.int32)

    def as_depth(self, drawn: object) -> Depth:
        """What the model is told, inside the traced step; static where it never changes."""
        if isinstance(self.run.loop.depth, FixedDepth) and not (self.run.loop.growth or self.run.loop.backprop_growth):
            return Depth(int(self.window), num_detached=self.run.loop.num_loops - int(self.window))
        return Depth(int(self.window), num_detached=drawn[..., 0], num_trained=drawn[..., 1])  # type: ignore[index]


def grown(full: int, growth: Growth | None, step: int) -> int:
    """What a number has grown to in a step (from 0)."""
    if growth is None or step >= growth.steps:
        return full
    if growth.shape == "linear":
        return max(1, -(-full * step // growth.steps))  # in whole numbers: nothing is rounded up by an error
    return max(1, math.ceil(full * (1 - math.sqrt(1 - step / growth.steps))))


def largest_inner(core: TwoSpeedCore) -> int:
    """The most inner loops of a loop that carry a gradient."""
    trained = core.inner_backprop
    if trained is None:
        return core.inner_loops
    return trained if isinstance(trained, int) else max(1, *trained)


def scheduled(depth: ScheduledDepth, step: int) -> int:
    """The loops of a step (from 0): those of the last entry at or before it, or on the line to the next."""
    steps = sorted(depth.loops)
    if depth.interpolate:
        return round(float(np.interp(step, steps, [depth.loops[s] for s in steps])))
    return depth.loops[max(s for s in steps if s <= step)]
