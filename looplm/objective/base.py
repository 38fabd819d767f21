"""What an objective is: from a forward pass to sums over tokens."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from looplm.config.schema import Place
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.model.layers import Group
from looplm.model.lm import LoopLM
from looplm.model.output import Output, Reads
from looplm.objective.router import RouterSums, head_sums, router_loss, router_sums
from looplm.ops.cross_entropy import IGNORED, TokenScores, linear_cross_entropy


class Sums(NamedTuple):
    """Sums over the scored tokens of a (micro-)batch; divide by `tokens` once, at the end, over all of them."""

    objective: jax.Array
    """What is minimised, nats."""
    loss: jax.Array
    """Cross-entropy after the last loop that was read, nats."""
    tokens: jax.Array
    """Scored tokens."""
    extra: dict[str, jax.Array]
    """More sums, by metric name; `(R,)` arrays are per iteration of the window."""
    routers: dict[Place, RouterSums] = {}  # noqa: RUF012
    """Of the sections that have experts."""
    heads: dict[Place, RouterSums] = {}  # noqa: RUF012
    """Of the sections whose attentions have experts."""


Groups = frozenset[Group]


class Objective(Protocol):
    trains: Groups | None
    """Groups of parameters that learn; None: all parameters do."""

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        """Runs the pass, says which loops it wants to be read and what it wants of each, and sums up.

        Args:
            labels_BS: what every token should predict; `ops.cross_entropy.IGNORED` is not scored.
            key: of what is drawn in this step.
        """


def evaluate(objective: Objective, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
    """Adds to the objective what the routers do."""
    sums, output = objective(forward, labels_BS, key)
    if not output.reports:
        return sums, output
    config = forward.model.config
    if objective.trains is None:
        scored_B = jax.numpy.sum(labels_BS != IGNORED, axis=1)
        sums = sums._replace(objective=sums.objective + router_loss(config, output, scored_B))
    return sums._replace(routers=router_sums(config, output), heads=head_sums(output)), output


def trained(objective: Objective, lm: FunctionalLM, params: Params) -> Params:
    """Gives the parameters without a gradient for those that the objective freezes."""
    groups = objective.trains
    if groups is None:
        return params
    return lm.map(
        lambda value, declaration: value if declaration.group in groups else jax.lax.stop_gradient(value), params
    )


def scoring(model: LoopLM, labels_BS: jax.Array) -> Callable[[jax.Array], TokenScores]:
    """Gives what is made of a loop that is read: from what the head reads (B, S, D) to scores, each (B, S)."""
    head_VD, bias_V, cap = model.head_VD, model.head_bias_V, model.config.logit_softcap
    return lambda hidden_BSD: linear_cross_entropy(hidden_BSD, head_VD, labels_BS, bias_V=bias_V, logit_softcap=cap)


def draw_loops(window: int, number: int | None, key: jax.Array) -> Reads:
    """Gives all loops, or `number` different ones of the window, each as likely as any other, ascending."""
    if number is None or number >= window:
        return "all"
    return jax.numpy.sort(jax.random.choice(key, window, (number,), replace=False))
