"""The optimizer of a run, as a chain of optax transformations."""

from typing import Any

import jax
import optax

from looplm.config.schema import AdamATan2, AdamW, Muon, Optim, Optimizer
from looplm.model.functional import FunctionalLM, Params
from looplm.model.layers import Group
from looplm.model.subset import Subset
from looplm.optim.adam_atan2 import scale_by_adam_atan2
from looplm.optim.ema import track_ema
from looplm.optim.groups import IDS, REST, decay_mask, id_labels, learning_rates, muon_dims, muon_labels
from looplm.optim.guard import guarded
from looplm.optim.learning import check_rates, learning_of
from looplm.optim.muon import scale_by_muon
from looplm.optim.row_sign import scale_by_row_sign
from looplm.optim.schedule import build_schedule


def build_guarded(
    config: Optim, lm: FunctionalLM, num_steps: int, trains: frozenset[Group] | None = None
) -> optax.GradientTransformationExtraArgs:
    """`build_optimizer`, with bad updates left out: what a run's state belongs to. Both raise as `learning_of`."""
    return guarded(build_optimizer(config, lm, num_steps, trains), config.guard)


def build_optimizer(
    config: Optim, lm: FunctionalLM, num_steps: int, trains: frozenset[Group] | None = None
) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer, then the learning rates, then the average of the weights.

    Weight decay is decoupled (arXiv 1711.05101) and multiplied with the parameter's learning rate. Parameters that do
    not learn have no state and no update: what is given for them is not looked at (see `learning_of`).

    trains: groups to which an objective confines the training; None: what the config says learns.
    """
    learning = learning_of(config, lm, trains)
    check_rates(config, lm, learning)
    transforms = [
        _direction(config, lm, learning),
        _scale_by(learning.only(learning_rates(config, lm))),
        optax.scale_by_learning_rate(build_schedule(config, num_steps)),
    ]
    if config.clip_norm is not None:
        transforms.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.ema_decay is not None:
        transforms.append(track_ema(config.ema_decay, learning.only(id_labels(lm))))
    return _of_what_learns(optax.chain(*transforms), learning)


def _of_what_learns(optimizer: optax.GradientTransformation, learning: Subset) -> optax.GradientTransformation:
    def update(gradient: Params, state: Any, params: Params) -> tuple[Params, Any]:
        return optimizer.update(learning.only(gradient), state, learning.only(params))

    return optax.GradientTransformation(lambda params: optimizer.init(learning.only(params)), update)


def _direction(config: Optim, lm: FunctionalLM, learning: Subset) -> optax.GradientTransformation:
    """What is subtracted from the parameters, but for the learning rate."""
    rest, labels = _direction_of_rest(config.optimizer, lm, learning), learning.only(id_labels(lm))
    if IDS not in jax.tree.leaves(labels):
        return rest
    return optax.partition({IDS: scale_by_row_sign(config.ids.weight_decay), REST: rest}, labels)


def _direction_of_rest(config: Optimizer, lm: FunctionalLM, learning: Subset) -> optax.GradientTransformation:
    """The direction of all parameters but tables of ids."""
    decays = learning.only(decay_mask(lm))
    match config:
        case AdamW():
            return _adamw(config, decays)
        case AdamATan2():
            return optax.chain(
                scale_by_adam_atan2(config.beta1, config.beta2),
                optax.add_decayed_weights(config.weight_decay, decays),
            )
        case Muon():
            muon = optax.chain(
                scale_by_muon(config.momentum, config.newton_schulz_steps, learning.only(muon_dims(lm))),
                optax.add_decayed_weights(config.weight_decay, decays),
            )
            by_label = {"muon": muon, "adamw": _adamw(config.adamw, decays)}
            return optax.partition(by_label, learning.only(muon_labels(lm)))


def _adamw(config: AdamW, decays: dict[str, Any]) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decays),
    )


def _scale_by(rates: dict[str, Any]) -> optax.GradientTransformation:
    """Multiplies every update with its parameter's number."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates))
