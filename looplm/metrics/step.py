"""What a training step returns beside its state: arrays on the devices, or those that the host has fetched."""

from typing import NamedTuple

import jax

from looplm.config.schema import Place


class LoopSums(NamedTuple):
    """Sums over the scored tokens, or means, of every loop of the window; None where nobody computes them."""

    loss_R: jax.Array | None = None
    """Cross-entropy after the loop, in nats."""
    exit_R: jax.Array | None = None
    """Probability of leaving after the loop."""


class RouterSums(NamedTuple):
    """Sums over the choices in one stack, of all tokens, scored or not. T visits: see `Output.reports`."""

    load_TLE: jax.Array
    """Choices of every expert, int32; 0 in loops that did not run."""
    kept_T: jax.Array
    """Choices that the visit before had also made for the same token; 0 for the first of the window."""
    dropped: jax.Array
    """Choices for which the capacity left no place."""


class Routers(NamedTuple):
    """What the routers of a model did, by the stack that they are in. Their metrics are named after the fields."""

    moe: dict[Place, RouterSums]
    """Routers of feed-forwards."""
    attention: dict[Place, RouterSums]
    """Routers of attentions: the experts of the first head's values, of the next one's, ..., then those of the
    outputs."""


NO_ROUTERS = Routers({}, {})


NO_ROWS: dict[str, jax.Array] = {}


class StepOutput(NamedTuple):
    """All numbers of a training step; `train.metrics` turns them into a line of `metrics.jsonl`."""

    tokens: jax.Array
    """How many tokens were scored."""
    means: dict[str, jax.Array]
    """Means over these tokens, by metric name. They mean nothing where there is none."""
    numbers: dict[str, jax.Array]
    """Other scalars, by metric name."""
    loops: LoopSums
    """Means of every loop of the window."""
    routers: Routers
    rows: dict[str, jax.Array] = NO_ROWS
    """(Sum, count) of numbers of the sequences that are logged, by metric name, (2,)."""
