"""Learning from predictions: a teacher's, or the own last loop's.

    distill        (1 - w) CE_R + w mean over loops of T^2 KL(teacher || p_t)       (arXiv 1503.02531)
    self_distill   CE_R + w mean over t < R of T^2 KL(p_R || p_t), p_R without gradient     (arXiv 2410.20672)

Both predictions are at temperature T. Neither's logits of a whole batch are in memory: see `ops.cross_entropy`.
"""

import jax
import jax.numpy as jnp

from looplm.config.schema import Distillation, SelfDistillation
from looplm.metrics.step import LoopSums
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.objective.base import Groups, Sums, distilling
from looplm.ops.cross_entropy import IGNORED
from looplm.ops.scopes import TEACHER

DIVERGENCE = "train/divergence"
"""The metric: what the weight is multiplied with, a token."""


class Distilled:
    """Cross-entropy after the last loop and the divergence from the teacher's predictions."""

    trains: Groups | None = None

    def __init__(self, config: Distillation):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        teacher, weight = forward.teacher, self.config.weight
        assert teacher is not None, "config.check requires a teacher"
        with jax.named_scope(TEACHER):
            target_BSE = jax.lax.stop_gradient(teacher("last").read[0])
        score = distilling(forward.model, labels_BS, teacher.model, self.config.temperature, forward.context.remat)
        output = forward(self.config.loops, lambda hidden_BSD: score(hidden_BSD, target_BSE))
        scores, ran_TB = output.read, output.read_active_TB
        loss, loops = jnp.sum(scores.nll_BS[-1]), LoopSums()
        if self.config.loops == "all":
            loops = LoopSums(jnp.sum(scores.nll_BS, axis=(1, 2)))
        divergence = _mean_over_loops(scores.divergence_BS, ran_TB)
        objective = (1 - weight) * loss + weight * divergence
        return Sums(objective, loss, jnp.sum(labels_BS != IGNORED), {DIVERGENCE: divergence}, loops), output


class SelfDistilled:
    """Cross-entropy after the last loop and the divergence of the earlier loops from it."""

    trains: Groups | None = None

    def __init__(self, config: SelfDistillation):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        score = distilling(forward.model, labels_BS, forward.model, self.config.temperature, forward.context.remat)
        output = forward("all", score, beside_last=True)
        scores, loss = output.read, jnp.sum(output.read.nll_BS[-1])
        ran_TB = output.read_active_TB
        divergence = _mean_over_loops(scores.divergence_BS[:-1], None if ran_TB is None else ran_TB[:-1])
        loops = LoopSums(jnp.sum(scores.nll_BS, axis=(1, 2)))
        objective = loss + self.config.weight * divergence
        return Sums(objective, loss, jnp.sum(labels_BS != IGNORED), {DIVERGENCE: divergence}, loops), output


def _mean_over_loops(divergence_TBS: jax.Array, ran_TB: jax.Array | None) -> jax.Array:
    """Sum over tokens of the mean over the loops that ran; 0 where none did."""
    if ran_TB is None:
        return jnp.sum(divergence_TBS) / max(divergence_TBS.shape[0], 1)
    share_TB = ran_TB / jnp.maximum(jnp.sum(ran_TB, axis=0), 1)
    return jnp.sum(share_TB[:, :, None] * divergence_TBS)
