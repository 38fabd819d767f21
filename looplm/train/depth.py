"""How many loops a training step runs: a function of (seed, step), the same on every host."""

import numpy as np

from looplm.config.check import max_loops
from looplm.config.schema import Run, UniformDepth
from looplm.model.loop import Depth

PURPOSE = 1
"""Keeps this stream of random numbers apart from others with the same seed."""


class DepthSchedule:
    """Draws the loops of every step and splits them into a detached prefix and a trained suffix."""

    def __init__(self, run: Run):
        self.run = run
        self.window = min(run.loop.backprop_loops or max_loops(run), max_loops(run))

    def num_loops(self, step: int) -> int:
        depth = self.run.loop.depth
        if isinstance(depth, UniformDepth):
            generator = np.random.default_rng((self.run.seed, PURPOSE, step))
            return int(generator.integers(depth.min_loops, depth.max_loops, endpoint=True))
        return self.run.loop.num_loops

    def draw(self, step: int) -> np.ndarray:
        """(loops without gradient, loops with gradient) of this step, int32 (2,)."""
        loops = self.num_loops(step)
        trained = min(loops, self.window)
        return np.array([loops - trained, trained], np.int32)

    def as_depth(self, drawn: object) -> Depth:
        """What the model is told, inside the traced step; static where it never changes."""
        if isinstance(self.run.loop.depth, UniformDepth):
            return Depth(self.window, num_trained=drawn[1], num_detached=drawn[0])  # type: ignore[index]
        return Depth(self.window, num_detached=self.run.loop.num_loops - self.window)
