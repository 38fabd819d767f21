"""Shortcuts on trajectories (LoopFormer, arXiv 2602.11451): a full pass, and one of fewer and larger steps.

    CE_R + w CE_short + v |sg(h_R) - h_short|^2 / D      the short trajectory is drawn anew every step

h is what the head reads. The short pass learns from labels, and from where the full one arrives.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from looplm.config.schema import ShortcutCrossEntropy
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.model.trajectory import draw_trajectory
from looplm.objective.base import Groups, Sums, scoring
from looplm.ops.cross_entropy import IGNORED, TokenScores
from looplm.ops.precision import at_least_fp32


class Shortcut:
    """Cross-entropy of both trajectories, and the squared distance of the short one's end from the full one's."""

    trains: Groups | None = None

    def __init__(self, config: ShortcutCrossEntropy):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        score = scoring(forward.model, labels_BS, forward.context.remat)

        def read(hidden_BSD: jax.Array) -> tuple[TokenScores, jax.Array]:
            return score(hidden_BSD), hidden_BSD

        output = forward("last", read)
        full, full_1BSD = output.read
        most = forward.depth.window
        loops, moments = draw_trajectory(most, key, jnp.promote_types(forward.dtype, jnp.float32))
        depth = Depth(most - 1, num_trained=loops, expected=(most / 2, 0.0))
        short, short_1BSD = replace(forward, depth=depth, per_loop=moments, with_statistics=False)("last", read).read
        off_1BSD = at_least_fp32(jax.lax.stop_gradient(full_1BSD)) - at_least_fp32(short_1BSD)
        scored_BS = labels_BS != IGNORED
        distance = jnp.sum(jnp.mean(jnp.square(off_1BSD), axis=-1) * scored_BS)
        loss, short_loss, tokens = jnp.sum(full.nll_BS), jnp.sum(short.nll_BS), jnp.sum(scored_BS)
        extra = {"shortcut/loss": short_loss, "shortcut/distance": distance, "shortcut/loops": tokens * loops}
        objective = loss + self.config.short_weight * short_loss + self.config.consistency_weight * distance
        return Sums(objective, loss, tokens, extra), output
