"""Elastic depth by learning from the own last loop (ELT, arXiv 2604.09168), from two loops of one pass.

    CE_R + w CE_t + (1 - w) T^2 KL(p_R || p_t)      t drawn anew every step, p_R without gradient, w from 1 to 0

The divergence has the gradient of the cross-entropy with p_R as labels, and is 0 where both predictions are one.
"""

import jax
import jax.numpy as jnp

from looplm.config.schema import ElasticCrossEntropy
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.objective.base import Groups, Sums, head_of
from looplm.objective.distill import DIVERGENCE
from looplm.ops.cross_entropy import IGNORED, linear_self_distillation


class Elastic:
    """Cross-entropy after the last loop, and a blend of cross-entropy and divergence after one that is drawn."""

    trains: Groups | None = None

    def __init__(self, config: ElasticCrossEntropy):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        depth, weight = forward.depth, self.weight(forward)
        loops, last = self.draw(depth, key), depth.window - 1
        output = forward(jnp.stack([last - (depth.num_loops - loops), jnp.int32(last)]))
        early, late = linear_self_distillation(
            output.read[0],
            output.read[1],
            head_of(forward.model),
            labels_BS,
            temperature=self.config.temperature,
            save_logits=forward.context.remat == "none",
        )
        loss, early_loss, divergence = map(jnp.sum, (late.nll_BS, early.nll_BS, early.divergence_BS))
        tokens = jnp.sum(labels_BS != IGNORED)
        extra = {
            DIVERGENCE: divergence,
            "elastic/loss": early_loss,
            "elastic/loops": tokens * loops,
            "elastic/label_weight": tokens * weight,
        }
        return Sums(loss + weight * early_loss + (1 - weight) * divergence, loss, tokens, extra), output

    def draw(self, depth: Depth, key: jax.Array) -> jax.Array:
        """Draw how many loops the shorter pass has, int32 (), from those that carry a gradient."""
        fewest = jnp.minimum(jnp.maximum(self.config.min_loops, depth.num_detached + 1), depth.num_loops)
        return jax.random.randint(key, (), fewest, depth.num_loops + 1)

    def weight(self, forward: Forward) -> jax.Array:
        """Return w of the step, from 1 to 0; 1 outside of training."""
        steps = self.config.steps or forward.num_steps
        if steps is None or forward.step is None:
            return jnp.float32(1)
        return jnp.maximum(1 - forward.step / steps, 0)
