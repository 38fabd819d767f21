"""Cross-entropy after the last loop."""

import jax
import jax.numpy as jnp

from looplm.config.schema import FinalCrossEntropy
from looplm.model.lm import LoopLM, Output, ReadLoops
from looplm.objective.base import Sums, scores_of_loops
from looplm.ops.cross_entropy import IGNORED


class Final:
    trains_gate_only = False

    def __init__(self, config: FinalCrossEntropy):
        self.config = config

    def read_loops(self, window: int, key: jax.Array) -> ReadLoops:
        return "last"

    def __call__(self, model: LoopLM, output: Output, labels_BS: jax.Array, read: ReadLoops) -> Sums:
        scores = scores_of_loops(model, output, labels_BS)
        loss = jnp.sum(scores.nll_BS)
        objective = loss + self.config.z_loss_weight * jnp.sum(scores.z_BS)
        return Sums(objective, loss, jnp.sum(labels_BS != IGNORED), {})
