"""What an objective is: from a forward pass to sums over tokens."""

from typing import NamedTuple, Protocol

import jax

from looplm.model.lm import LoopLM, Output


class Sums(NamedTuple):
    """Sums over the scored tokens of a (micro-)batch; divide by `tokens` once, at the end, over all of them."""

    objective: jax.Array
    """What is minimised, nats."""
    loss: jax.Array
    """Cross-entropy after the last loop, nats."""
    tokens: jax.Array
    """Scored tokens."""
    extra: dict[str, jax.Array]
    """More sums, by metric name; `(R,)` arrays are per iteration of the window."""


class Objective(Protocol):
    every_loop: bool
    """Whether hidden states of all loops are needed."""

    def __call__(self, model: LoopLM, output: Output, labels_BS: jax.Array) -> Sums:
        """Labels of `ops.cross_entropy.IGNORED` are not scored."""
        ...
