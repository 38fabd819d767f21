"""Cross-entropy of every loop, weighted: by the exit distribution, or by fixed weights.

    expected   sum over tokens of  sum_t p_t CE_t - beta H(p)      (arXiv 2510.25741, stage I)
               + beta' KL(p || prior)                              (PonderNet, arXiv 2107.05407)
               or  + beta' KL(mean over tokens of p || prior)      (arXiv 2610.09013)
    weighted   sum over tokens of  sum_t w_t CE_t

With sampled heads the sum over loops is replaced by R/m times the sum over m loops that are drawn without replacement.
Every loop is drawn with probability m/R, so the gradient is right on average.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.config.schema import ExitPrior, ExpectedCrossEntropy, WeightedCrossEntropy
from looplm.metrics.step import LoopSums
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.objective.base import Groups, Sums, draw_loops, scoring
from looplm.ops.cross_entropy import IGNORED


class Weights(NamedTuple):
    """How an objective weighs the losses of the loops."""

    weight_RBS: jax.Array
    """Weight of every loop of the window; B and S may be 1."""
    bonus: jax.Array
    """What is subtracted from the weighted sum."""
    extra: dict[str, jax.Array]
    """Sums to log, by metric name."""
    exit_R: jax.Array | None = None
    """See `LoopSums`."""


class PerLoop:
    """A weighted sum of the cross-entropies of all loops, or of some that are drawn; subclasses give the weights."""

    trains: Groups | None = None

    def __init__(self, config: ExpectedCrossEntropy | WeightedCrossEntropy):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        read = draw_loops(forward.depth.window, self.config.sampled_heads, key)
        output = forward(read, scoring(forward.model, labels_BS, forward.context.remat))
        scores = output.read
        scored_BS = labels_BS != IGNORED
        weight_RBS, bonus, extra, exit_R = self.weights(output, labels_BS)
        loss_R = None
        if isinstance(read, str):
            loss_R = jnp.sum(scores.nll_BS, axis=(1, 2))
        else:
            weight_RBS = weight_RBS[read] * (weight_RBS.shape[0] / read.shape[0])
        weighted = jnp.sum(weight_RBS * (scores.nll_BS + self.config.z_loss_weight * scores.z_BS))
        extra = extra | {"train/expected_loss": jnp.sum(weight_RBS * scores.nll_BS)}
        tokens, loops = jnp.sum(scored_BS), LoopSums(loss_R, exit_R)
        return Sums(weighted - bonus, jnp.sum(scores.nll_BS[-1]), tokens, extra, loops), output

    def weights(self, output: Output, labels_BS: jax.Array) -> Weights:
        """Return the weights of a pass."""
        raise NotImplementedError("one of the subclasses")


class Expected(PerLoop):
    """Weights are the exit distribution, whose entropy earns a bonus."""

    config: ExpectedCrossEntropy

    def weights(self, output: Output, labels_BS: jax.Array) -> Weights:
        assert output.log_exit_RBS is not None, "config.check requires a gate"
        scored_BS = labels_BS != IGNORED
        exit_RBS = jnp.exp(output.log_exit_RBS)
        # 0 log 0 = 0: a loop that did not run has p = 0, log p = -inf.
        plogp_RBS = exit_RBS * jnp.where(exit_RBS > 0, output.log_exit_RBS, 0.0)
        entropy = -jnp.sum(plogp_RBS, where=scored_BS)
        exit_R = jnp.sum(exit_RBS, axis=(1, 2), where=scored_BS)
        bonus, extra = self.config.entropy_weight * entropy, {"gate/entropy": entropy}
        if (prior := self.config.prior) is not None:
            tokens, log_prior_RB1 = jnp.sum(scored_BS), jnp.log(prior_over_loops(prior, output.depth))[:, :, None]
            if prior.over == "token":
                divergence = -entropy - jnp.sum(jnp.where(exit_RBS > 0, exit_RBS * log_prior_RB1, 0), where=scored_BS)
            else:
                mean_R = exit_R / jnp.maximum(tokens, 1)
                some_R = jnp.where(mean_R > 0, mean_R, 1.0)
                log_prior_R = jnp.log(jnp.mean(jnp.exp(log_prior_RB1), axis=(1, 2)))
                terms_R = jnp.where(mean_R > 0, some_R * (jnp.log(some_R) - log_prior_R), 0)
                divergence = tokens * jnp.sum(terms_R)
            bonus, extra = bonus - prior.weight * divergence, extra | {"gate/divergence": divergence}
        return Weights(exit_RBS, bonus, extra, exit_R)


class Weighted(PerLoop):
    """Weights are the same for all loops, or grow with the loop's number; they sum to 1."""

    config: WeightedCrossEntropy

    def weights(self, output: Output, labels_BS: jax.Array) -> Weights:
        active_RB = output.depth.active_RB
        if active_RB is None:
            active_RB = jnp.ones((output.depth.window, 1), bool)
        # Loops are numbered from the first that ran, so that a shallow draw weighs like a shallow model.
        number_RB = jnp.cumsum(active_RB, axis=0)
        raw_RB = jnp.where(active_RB, number_RB if self.config.weights == "linear" else 1, 0)
        weight_RB = raw_RB / jnp.sum(raw_RB, axis=0)
        return Weights(weight_RB[:, :, None], jnp.zeros(()), {})


def prior_over_loops(prior: ExitPrior, depth: Depth) -> jax.Array:
    """Return the prior over the loops of the window that ran, (R, 1) or (R, B); 0 for the others."""
    active_RB = depth.active_RB
    if active_RB is None:
        active_RB = jnp.ones((depth.window, 1), bool)
    earlier_RB = jnp.cumsum(active_RB, axis=0) - 1
    stay = 1.0 if prior.halt_probability is None else 1 - prior.halt_probability
    raw_RB = jnp.where(active_RB, stay**earlier_RB, 0.0)
    return raw_RB / jnp.sum(raw_RB, axis=0)
