"""Objectives: what a training step minimises, from a forward pass to sums over tokens."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax

from looplm.config.schema import Place
from looplm.errors import UserError
from looplm.metrics.step import NO_ROUTERS, LoopSums, Routers
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.model.layers import Group
from looplm.model.lm import LoopLM
from looplm.model.loop import Remat
from looplm.model.output import Output, Reads
from looplm.objective.router import loads_by_row, router_loss, router_sums
from looplm.ops.cross_entropy import (
    IGNORED,
    DistilledScores,
    Head,
    TokenScores,
    linear_cross_entropy,
    linear_distillation,
)

AUXILIARY_COST = "train/auxiliary"
"""The metric: what losses of the layers' own add to the loss, a token."""
HALTING_COST = "halt/cost"
"""The metric: what the halting rule adds to the loss, a token."""
NO_LOADS: dict[Place, jax.Array] = {}


class Rows(NamedTuple):
    """Numbers of every sequence, of which the means are logged."""

    counted_B: jax.Array
    """Which sequences count, bool."""
    numbers: dict[str, jax.Array]
    """By metric name, (B,)."""


class Sums(NamedTuple):
    """Sums over the scored tokens of a (micro-)batch; divide by `tokens` once, at the end, over all of them."""

    objective: jax.Array
    """What is minimised, in nats."""
    loss: jax.Array
    """Cross-entropy after the last loop that was read, in nats."""
    tokens: jax.Array
    """How many tokens are scored."""
    extra: dict[str, jax.Array]
    """More sums to log, by metric name; scalars."""
    loops: LoopSums = LoopSums()
    """Sums to log for every loop of the window."""
    routers: Routers = NO_ROUTERS
    """What the routers chose; an objective leaves it to `evaluate`, like what follows."""
    loads_by_row: dict[Place, jax.Array] = NO_LOADS
    """Choices of every expert by row of the router's tables, of the stacks that have experts; (L, W, E)."""
    divisor: jax.Array | None = None
    """What the objective is divided by, where that is not `tokens`."""
    rows: Rows | None = None
    """Numbers of every sequence, if the objective has any. Where rows stay for several steps (`train.carrying`), those
    that end are logged."""


Groups = frozenset[Group]


class Objective(Protocol):
    """What is minimised. It gets a pass that is ready to run, and never sees stacked hidden states of several loops."""

    trains: Groups | None
    """Groups of parameters that learn; None: all parameters do."""

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        """Run the pass, reading the loops that the objective looks at, and sum up.

        Args:
            labels_BS: id that every token should predict, int32; `ops.cross_entropy.IGNORED` is not scored.
            key: random key of the step, for loops that are drawn.

        Returns (sums, the output of the pass).
        """


def evaluate(objective: Objective, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
    """Run an objective, and add the losses of halting rules, routers and layers, and the sums of the routers. Arguments
    and results as of `Objective`.

    Raises UserError for an objective whose sums to log are no scalars.
    """
    sums, output = objective(forward, labels_BS, key)
    for name, value in sums.extra.items():
        if jax.numpy.shape(value):
            raise UserError(
                f"the objective's sum {name!r} has the shape {jax.numpy.shape(value)}; give scalars in Sums.extra, and "
                "what is counted for every loop in Sums.loops"
            )
    scored_B = jax.numpy.sum(labels_BS != IGNORED, axis=1)
    sums = with_halting(sums, forward, output, scored_B, learns=objective.trains is None)
    if not output.reports:
        return sums, output
    config = forward.model.config
    sums = with_auxiliary(sums, output, scored_B, learns=objective.trains is None)
    if objective.trains is None:
        sums = sums._replace(objective=sums.objective + router_loss(config, output, scored_B))
    return sums._replace(routers=router_sums(output), loads_by_row=loads_by_row(config, output)), output


def with_halting(sums: Sums, forward: Forward, output: Output, scored_B: jax.Array, *, learns: bool) -> Sums:
    """Add what the halting rule says of a pass. A sequence counts as often as it has scored tokens, or once where the
    objective is divided by the number of sequences."""
    front, halting = forward.model.front, forward.halting or forward.model.halting
    context = forward.context if front is None else front.lengthened(forward.context)
    told = halting.told(output.halt, context.counted_BS, forward.step)
    if told is None:
        return sums
    cost = jax.numpy.sum(told.cost_B * (scored_B if sums.divisor is None else 1))
    numbers = {name: jax.numpy.sum(number_B * scored_B) for name, number_B in told.numbers.items()}
    return sums._replace(
        objective=sums.objective + cost if learns else sums.objective, extra=sums.extra | numbers | {HALTING_COST: cost}
    )


def with_auxiliary(sums: Sums, output: Output, scored_B: jax.Array, *, learns: bool) -> Sums:
    """Add the layers' own losses: summed over the layers of the block, a mean over the loops that ran."""
    report = output.reports.get("block")
    if report is None or report.auxiliary_B is None:
        return sums
    loss_RB = jax.numpy.sum(report.auxiliary_B, axis=2)
    active_RB = output.depth.active_RB
    loops = loss_RB.shape[0] if active_RB is None else jax.numpy.maximum(jax.numpy.sum(active_RB, axis=0), 1)
    cost = jax.numpy.sum(jax.numpy.sum(loss_RB, axis=0) / loops * scored_B)
    return sums._replace(
        objective=sums.objective + cost if learns else sums.objective, extra=sums.extra | {AUXILIARY_COST: cost}
    )


def with_frozen(objective: Objective, lm: FunctionalLM, params: Params) -> Params:
    """Stop the gradient of the parameters that the objective does not train."""
    groups = objective.trains
    if groups is None:
        return params
    return lm.map(
        lambda value, declaration: value if declaration.group in groups else jax.lax.stop_gradient(value), params
    )


def scoring(model: LoopLM, labels_BS: jax.Array, remat: Remat = "loop") -> Callable[[jax.Array], TokenScores]:
    """Return the function that scores a loop: what the head reads (B, S, D) -> scores of every token, each (B, S).

    remat: the logits are saved where nothing is to be recomputed.
    """
    return partial(
        linear_cross_entropy,
        head_VD=model.head_VD,
        labels_BS=labels_BS,
        bias_V=model.head_bias_V,
        logit_softcap=model.config.logit_softcap,
        save_logits=remat == "none",
    )


def distilling(
    model: LoopLM, labels_BS: jax.Array, target: LoopLM, temperature: float, remat: Remat = "loop"
) -> Callable[[jax.Array, jax.Array], DistilledScores]:
    """Return the function that scores a loop and compares it: (what the head reads (B, S, D), what the target's head
    reads) -> scores of every token, each (B, S)."""

    def score(hidden_BSD: jax.Array, target_BSE: jax.Array) -> DistilledScores:
        return linear_distillation(
            hidden_BSD,
            head_of(model),
            labels_BS,
            target_BSE,
            head_of(target),
            temperature=temperature,
            save_logits=remat == "none",
        )

    return score


def head_of(model: LoopLM) -> Head:
    """Return what makes logits of what the head reads."""
    return Head(model.head_VD, model.head_bias_V, model.config.logit_softcap)


def draw_loops(window: int, number: int | None, key: jax.Array) -> Reads:
    """Choose the loops to read: all, or `number` different ones of the window, all equally likely, ascending."""
    if number is None or number >= window:
        return "all"
    return jax.numpy.sort(jax.random.choice(key, window, (number,), replace=False))
