"""Rows that are answered in place, and a gate that says whether the answer is right (arXiv 2506.21734, 2510.04871).

    per row:  mean over its labels of -log p(label)
              + w [ BCE(q_0, every label is met) + BCE(q_1, what the next segment promises) ]

The second term of the gate is there where it has a second output that counts. Its target is sigmoid(max(q'_0, q'_1))
of one more segment from the state that this one leaves, or sigmoid(q'_0) for a row whose segments end here: Q-learning.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from looplm.config.schema import SupervisedRows
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.objective.base import Groups, Rows, Sums
from looplm.ops.cross_entropy import IGNORED
from looplm.ops.cross_entropy.label import cross_entropy
from looplm.ops.precision import at_least_fp32
from looplm.ops.stablemax import stablemax_logits


class Supervised:
    """The mean loss of every row and the cross-entropy of the gate, summed over rows."""

    trains: Groups | None = None

    def __init__(self, config: SupervisedRows):
        self.config = config

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        scored_BS = labels_BS != IGNORED

        def answers(hidden_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits_BSV = at_least_fp32(forward.model.logits(hidden_BSD))
            if self.config.loss == "stablemax":
                logits_BSV = stablemax_logits(logits_BSV)
            nll_BS, right_BS, _ = cross_entropy(logits_BSV, labels_BS)
            return jnp.where(scored_BS, nll_BS, 0), scored_BS & right_BS

        output = forward("last", answers)
        q_BQ = output.sequence_gate_BQ
        assert q_BQ is not None, "config.check requires a sequence gate"
        nll_BS, right_BS = jax.tree.map(lambda leaf_TBS: leaf_TBS[0], output.read)
        labels_B, right_B = jnp.sum(scored_BS, axis=1), jnp.sum(right_BS, axis=1)
        exact_B = right_B == labels_B

        gate_B = optax.sigmoid_binary_cross_entropy(q_BQ[:, 0], exact_B.astype(q_BQ.dtype))
        gate = forward.model.config.sequence_gate
        if gate is not None and gate.weighs_going_on:
            gate_B += optax.sigmoid_binary_cross_entropy(q_BQ[:, 1], self.worth_of_going_on(forward, output))
        row_B = jnp.sum(nll_BS, axis=1) / jnp.maximum(labels_B, 1) + self.config.gate_weight * gate_B
        numbers = {
            "train/exact": exact_B,
            "train/accuracy": right_B / jnp.maximum(labels_B, 1),
            "gate/right": (q_BQ[:, 0] >= 0) == exact_B,
        }
        objective, loss, rows = jnp.sum(row_B), jnp.sum(nll_BS), Rows(labels_B > 0, numbers)
        return Sums(objective, loss, jnp.sum(labels_B), {}, divisor=jnp.int32(labels_B.size), rows=rows), output

    def worth_of_going_on(self, forward: Forward, output: Output) -> jax.Array:
        """Return the target of the gate's second output, (B,), without gradient."""
        state = jax.lax.stop_gradient(output.state)
        following = replace(forward, start=state, fresh_B=None, with_statistics=False)("last", lambda hidden_BSD: ())
        q_BQ = following.sequence_gate_BQ
        assert q_BQ is not None, "the model has one"
        best_B = jnp.maximum(q_BQ[:, 0], q_BQ[:, 1])
        ends_B = True if forward.ends_B is None else forward.ends_B
        return jax.lax.stop_gradient(jax.nn.sigmoid(jnp.where(ends_B, q_BQ[:, 0], best_B)))
