"""Cross-entropy after the last loop."""

import jax
import jax.numpy as jnp

from looplm.config.schema import FinalCrossEntropy
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.objective.base import Groups, Sums, scoring
from looplm.ops.cross_entropy import IGNORED


class Final:
    """Cross-entropy after the last loop, and the z-loss if it has a weight."""

    trains: Groups | None = None

    def __init__(self, config: FinalCrossEntropy):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        output = forward("last", scoring(forward.model, labels_BS, forward.context.remat))
        loss = jnp.sum(output.read.nll_BS)
        objective = loss + self.config.z_loss_weight * jnp.sum(output.read.z_BS)
        return Sums(objective, loss, jnp.sum(labels_BS != IGNORED), {}), output
