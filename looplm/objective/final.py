"""Cross-entropy after the last loop."""

import jax
import jax.numpy as jnp

from looplm.model.lm import LoopLM, Output
from looplm.objective.base import Sums
from looplm.ops.cross_entropy import IGNORED, linear_cross_entropy


class Final:
    every_loop = False

    def __call__(self, model: LoopLM, output: Output, labels_BS: jax.Array) -> Sums:
        scores = linear_cross_entropy(output.hidden_RBSD[-1], model.head_VD, labels_BS)
        loss = jnp.sum(scores.nll_BS)
        return Sums(loss, loss, jnp.sum(labels_BS != IGNORED), {})
