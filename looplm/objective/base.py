"""What an objective is: from a forward pass to sums over tokens."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from looplm.config.schema import Place
from looplm.model.functional import Params
from looplm.model.lm import LoopLM, Output, ReadLoops
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


class Objective(Protocol):
    trains_gate_only: bool
    """Whether every other parameter is frozen."""

    def read_loops(self, window: int, key: jax.Array) -> ReadLoops:
        """Which loops of the window the model is to read in this step."""

    def __call__(self, model: LoopLM, output: Output, labels_BS: jax.Array, read: ReadLoops) -> Sums:
        """`read`: what `read_loops` gave. Labels of `ops.cross_entropy.IGNORED` are not scored."""


def evaluate(objective: Objective, model: LoopLM, output: Output, labels_BS: jax.Array, read: ReadLoops) -> Sums:
    """The objective, and what the routers add to it."""
    sums = objective(model, output, labels_BS, read)
    if not output.routing:
        return sums
    if not objective.trains_gate_only:
        scored_B = jax.numpy.sum(labels_BS != IGNORED, axis=1)
        sums = sums._replace(objective=sums.objective + router_loss(model.config, output, scored_B))
    return sums._replace(routers=router_sums(model.config, output), heads=head_sums(output))


def trained(objective: Objective, params: Params) -> Params:
    """The parameters, without a gradient for those that the objective freezes."""
    if not objective.trains_gate_only:
        return params
    return {name: jax.lax.stop_gradient(tree) for name, tree in params.items()} | {"gate": params["gate"]}


def scores_of_loops(model: LoopLM, output: Output, labels_BS: jax.Array) -> TokenScores:
    """Scores of all loops that were read, each (R, B, S); one loop's logits in memory at a time."""
    head_VD, bias_V, cap = model.head_VD, model.head_bias_V, model.config.logit_softcap
    score: Callable[[jax.Array], TokenScores] = lambda hidden_BSD: linear_cross_entropy(  # noqa: E731
        hidden_BSD, head_VD, labels_BS, bias_V=bias_V, logit_softcap=cap
    )
    return jax.lax.map(score, output.hidden_RBSD)


def draw_loops(window: int, number: int | None, key: jax.Array) -> ReadLoops:
    """All loops, or `number` different ones of the window, each as likely as any other, ascending."""
    if number is None or number >= window:
        return "all"
    return jax.numpy.sort(jax.random.choice(key, window, (number,), replace=False))
