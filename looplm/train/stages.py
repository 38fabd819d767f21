"""A planned change of the data or the depth: the guard is told, so that it takes the new level for no spike."""

from dataclasses import replace

import jax

from looplm.data.mixture import Mixture
from looplm.optim.guard import new_stage
from looplm.train.depth import DepthSchedule
from looplm.train.rewind import Batches
from looplm.train.state import TrainState


class Stages:
    """Knows which steps are the first of a stage: a function of the step, so that a resume is exact."""

    def __init__(self, mixture: Mixture, batches: Batches, depths: DepthSchedule):
        self.mixture, self.batches, self.depths = mixture, batches, depths

    def begins(self, step: int) -> str | None:
        """What is new in a step (from 1); None when it goes on as the one before. Also where a rewind has passed over
        the beginning."""
        if step == 1:
            return None
        if self.mixture.stage(self.batches.of(step)) != self.mixture.stage(self.batches.of(step - 1)):
            return "data.train has other shares"
        if self.depths.is_planned:
            before, now = (int(self.depths.num_loops(number - 1)[0]) for number in (step - 1, step))
            if before != now:
                return f"{now} loops instead of {before}"
        return None


def enter(state: TrainState) -> TrainState:
    """The state at the beginning of a stage: the guard knows nothing of the new level."""
    guard = state.opt_state.guard
    shardings = jax.tree.map(lambda leaf: leaf.sharding, guard)
    fresh = jax.jit(new_stage, out_shardings=shardings)(guard)
    return replace(state, opt_state=state.opt_state._replace(guard=fresh))
