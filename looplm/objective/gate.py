"""Trains the exit gate on what the next loop does to the loss of a token: alone (arXiv 2510.25741, stage II), or
together with the model (`Decided`).

    I_t = max(0, CE_{t-1} - CE_t)                     measured, no gradient
    w_t = sigmoid(k (I_t - gamma))                    1: going on to loop t pays
    sum over tokens of  mean over t = 2..R of  - w_t log(1 - lambda_{t-1}) - (1 - w_t) log lambda_{t-1}

lambda_{t-1} is the gate after loop t - 1, which decides whether loop t runs. The paper writes lambda_t and divides by
R. This is the reading in which a high w means "go on", with the same divisor.
"""

import jax
import jax.numpy as jnp

from looplm.config.schema import DecidedCrossEntropy, GateImprovement
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


class Decided:
    """Mean cross-entropy of the loops that ran, and that of the gate with what the next loop did to it:

    sum over tokens of  mean_t CE_t + w mean over t < R of BCE(lambda_t, CE_t - CE_{t+1} <= threshold)

    Model and gate learn together. Targets are measured in the same pass and have no gradient.
    """

    trains: Groups | None = None

    def __init__(self, config: DecidedCrossEntropy):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        output = forward("all", scoring(forward.model, labels_BS, forward.context.remat))
        assert output.gate_logits_RBS is not None, "config.check requires a gate"
        assert output.log_exit_RBS is not None
        nll_RBS, scored_BS = output.read.nll_BS, labels_BS != IGNORED
        active_RB = output.depth.active_RB
        ran_RB1 = jnp.ones((nll_RBS.shape[0], 1, 1), bool) if active_RB is None else active_RB[:, :, None]
        loss = jnp.sum(jnp.where(ran_RB1, nll_RBS, 0) / jnp.sum(ran_RB1, axis=0))

        measured_RBS, decides_RB1 = jax.lax.stop_gradient(nll_RBS), ran_RB1[:-1]
        stops_RBS = measured_RBS[:-1] - measured_RBS[1:] <= self.config.threshold
        logits_RBS = output.gate_logits_RBS[:-1]
        bce_RBS = jax.nn.softplus(logits_RBS) - jnp.where(stops_RBS, logits_RBS, 0)
        decisions_B1 = jnp.maximum(jnp.sum(decides_RB1, axis=0), 1)
        gate = jnp.sum(jnp.where(decides_RB1 & scored_BS, bce_RBS, 0) / decisions_B1)
        right = jnp.sum(jnp.where(decides_RB1 & scored_BS, (logits_RBS > 0) == stops_RBS, 0) / decisions_B1)

        exit_R = jnp.sum(jnp.exp(output.log_exit_RBS), axis=(1, 2), where=scored_BS)
        loops = LoopSums(jnp.sum(nll_RBS, axis=(1, 2)), exit_R)
        extra = {"gate/decision_loss": gate, "gate/decided_right": right}
        objective = loss + self.config.gate_weight * gate
        return Sums(objective, jnp.sum(nll_RBS[-1]), jnp.sum(scored_BS), extra, loops), output
