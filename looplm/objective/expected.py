"""Expected cross-entropy under the exit distribution with an entropy bonus (arXiv 2510.25741, stage I).

sum over tokens of  sum_t p_t CE_t - beta H(p)
"""

import jax
import jax.numpy as jnp

from looplm.model.lm import LoopLM, Output
from looplm.objective.base import Sums
from looplm.ops.cross_entropy import IGNORED, linear_cross_entropy


class Expected:
    every_loop = True

    def __init__(self, entropy_weight: float):
        self.entropy_weight = entropy_weight

    def __call__(self, model: LoopLM, output: Output, labels_BS: jax.Array) -> Sums:
        head_VD = model.head_VD
        nll_RBS = jax.lax.map(
            lambda hidden_BSD: linear_cross_entropy(hidden_BSD, head_VD, labels_BS).nll_BS, output.hidden_RBSD
        )
        assert output.log_exit_RBS is not None, "config.check requires a gate"
        exit_RBS = jnp.exp(output.log_exit_RBS)
        # 0 log 0 = 0: a loop that did not run has p = 0, log p = -inf.
        plogp_RBS = exit_RBS * jnp.where(exit_RBS > 0, output.log_exit_RBS, 0.0)
        scored_BS = labels_BS != IGNORED
        entropy = -jnp.sum(plogp_RBS, where=scored_BS)
        expected_loss = jnp.sum(exit_RBS * nll_RBS)
        extra = {
            "train/loss_loop": jnp.sum(nll_RBS, axis=(1, 2)),
            "train/expected_loss": expected_loss,
            "gate/entropy": entropy,
            "gate/exit": jnp.sum(exit_RBS, axis=(1, 2), where=scored_BS),
        }
        objective = expected_loss - self.entropy_weight * entropy
        return Sums(objective, jnp.sum(nll_RBS[-1]), jnp.sum(scored_BS), extra)
