"""The optimizer of a run."""

from typing import Any

import optax

from looplm.config.schema import Optim
from looplm.model.functional import FunctionalLM
from looplm.optim.schedule import build_schedule


def build_optimizer(config: Optim, lm: FunctionalLM, num_steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with decay on matrices only (no norms, biases or gate bias)."""
    adamw = config.optimizer
    transforms = [
        optax.adamw(
            build_schedule(config, num_steps),
            b1=adamw.beta1,
            b2=adamw.beta2,
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
            mask=decay_mask(lm),
        )
    ]
    if config.clip_norm is not None:
        transforms.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*transforms)


def decay_mask(lm: FunctionalLM) -> dict[str, Any]:
    """True for parameters that decay: all that are not elementwise. A tree like the parameters."""
    return lm.map(lambda _, declaration: not declaration.elementwise, lm.shapes)
