"""A moving average of the parameters, kept in the optimizer's state.

There it is sharded, saved and restored like the moments, and whoever undoes an update undoes it with the rest.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from looplm.model.functional import Params
from looplm.optim.groups import IDS


class EmaState(NamedTuple):
    params: Params
    """float32, a tree like the parameters."""


def track_ema(decay: float, labels: Params) -> optax.GradientTransformation:
    """Keeps average = decay * average + (1 - decay) * parameters, once a step; updates pass unchanged.

    It must be the last of a chain: it averages the parameters as the updates that it sees leave them. The average
    starts as the first parameters, without bias correction: after n steps they still have the weight decay ** n. Of
    tables of ids it keeps the newest values: a row that is seldom read would be an average with its first value.

    labels: of `id_labels`.
    """

    def init(params: Params) -> EmaState:
        # Copies: a step that donates its state must not be given a buffer twice.
        return EmaState(jax.tree.map(jnp.copy, params))

    def update(updates: Params, state: EmaState, params: Params) -> tuple[Params, EmaState]:
        moved = optax.apply_updates(params, updates)
        averages = optax.incremental_update(moved, state.params, 1 - decay)
        return updates, EmaState(
            jax.tree.map(lambda label, new, average: new if label == IDS else average, labels, moved, averages)
        )

    return optax.GradientTransformation(init, update)


def abstract_ema(optimizer: optax.GradientTransformation, shapes: Params, abstract_params: Params) -> Any:
    """The optimizer's state with `abstract_params` in place of the average and `...` in place of every other leaf.

    To read the average from a checkpoint without the moments, which are larger.
    """
    return jax.tree.map(
        lambda node: EmaState(abstract_params) if isinstance(node, EmaState) else ...,
        jax.eval_shape(optimizer.init, shapes),
        is_leaf=lambda node: isinstance(node, EmaState),
    )


def ema_params(opt_state: Any) -> Params | None:
    """The averaged parameters in the state of an optimizer; None when it keeps none."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, EmaState))
    return next((node.params for node in nodes if isinstance(node, EmaState)), None)
