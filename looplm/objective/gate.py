"""Trains the exit gate alone, on how much every next loop improves the loss of a token (arXiv 2510.25741, stage II).

    I_t = max(0, CE_{t-1} - CE_t)                     measured, no gradient
    w_t = sigmoid(k (I_t - gamma))                    1: going on to loop t pays
    sum over tokens of  mean over t = 2..R of  - w_t log(1 - lambda_{t-1}) - (1 - w_t) log lambda_{t-1}

lambda_{t-1} is the gate after loop t - 1, which decides whether loop t runs. The paper writes lambda_t and divides by
R. This is the reading in which a high w means "go on", with the same divisor.
"""

import jax
import jax.numpy as jnp

from looplm.config.schema import GateImprovement
from looplm.metrics.step import LoopSums
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.objective.base import Groups, Sums, scoring
from looplm.ops.cross_entropy import IGNORED


class Gate:
    """Cross-entropy of the gate with the measured improvements; everything but the gate is frozen."""

    trains: Groups | None = frozenset({"gate"})

    def __init__(self, config: GateImprovement):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        output = forward("all", scoring(forward.model, labels_BS, forward.context.remat))
        assert output.gate_logits_RBS is not None, "config.check requires a gate"
        assert output.log_exit_RBS is not None
        nll_RBS = jax.lax.stop_gradient(output.read.nll_BS)
        improvement_RBS = jnp.maximum(nll_RBS[:-1] - nll_RBS[1:], 0.0)
        go_on_RBS = jax.nn.sigmoid(self.config.sharpness * (improvement_RBS - self.config.threshold))
        logits_RBS = output.gate_logits_RBS[:-1]
        loss_RBS = -go_on_RBS * jax.nn.log_sigmoid(-logits_RBS) - (1 - go_on_RBS) * jax.nn.log_sigmoid(logits_RBS)
        scored_BS = labels_BS != IGNORED
        exit_RBS = jnp.exp(output.log_exit_RBS)
        loops = LoopSums(jnp.sum(nll_RBS, axis=(1, 2)), jnp.sum(exit_RBS, axis=(1, 2), where=scored_BS))
        objective = jnp.sum(loss_RBS, where=scored_BS) / nll_RBS.shape[0]
        return Sums(objective, jnp.sum(nll_RBS[-1]), jnp.sum(scored_BS), {}, loops), output
