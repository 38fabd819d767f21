"""Adam with atan2 in place of the division (arXiv 2407.05872, section 3.2)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from looplm.model.functional import Params


def scale_by_adam_atan2(beta1: float, beta2: float) -> optax.GradientTransformation:
    """The direction atan2(m, sqrt(v)) of the moments that Adam keeps, without their bias: m of the gradient, v of its
    square. At most pi / 2, alike for gradients of any size, and 0 where all of them were."""
    adam = optax.scale_by_adam(beta1, beta2)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        _, state = adam.update(updates, state, params)
        mean = optax.tree.bias_correction(state.mu, beta1, state.count)
        square = optax.tree.bias_correction(state.nu, beta2, state.count)
        return jax.tree.map(lambda m, v: jnp.arctan2(m, jnp.sqrt(v)), mean, square), state

    return optax.GradientTransformation(adam.init, update)
