"""Where bfloat16 is not enough."""

import jax
import jax.numpy as jnp


def at_least_fp32(x: jax.Array) -> jax.Array:
    """float32, or float64 when `x` already is: softmax, norms, losses and gates are computed in this."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
