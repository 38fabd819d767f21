"""Root-mean-square normalisation (arXiv 1910.07467), and layer normalisation (arXiv 1607.06450)."""

import jax
import jax.numpy as jnp

from looplm.ops.precision import at_least_fp32


def rms_norm(x: jax.Array, scale: jax.Array | float = 1.0, *, eps: float | None = None, num_dims: int = 1) -> jax.Array:
    """Divides the last `num_dims` dims by their root mean square and multiplies by `scale`.

    Args:
        x: (..., D).
        scale: (D,), the last dims, or anything that broadcasts to x.
        eps: added to the mean square; None means the machine epsilon of what it is computed in.

    Returns:
        Like x; computed in float32 because squares of bfloat16 lose the mean.
    """
    wide = at_least_fp32(x)
    eps = float(jnp.finfo(wide.dtype).eps) if eps is None else eps
    inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=tuple(range(-num_dims, 0)), keepdims=True) + eps)
    return (wide * inverse_rms * scale).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float) -> jax.Array:
    """Takes the mean of the last dim away, divides by the standard deviation, multiplies by `scale` and adds `bias`.

    Args:
        x: (..., D).
        scale, bias: (D,), or anything that broadcasts to x.
        eps: added to the variance.

    Returns:
        Like x; computed in float32.
    """
    wide = at_least_fp32(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse_deviation = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * inverse_deviation * scale + bias).astype(x.dtype)


def deviation_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float) -> jax.Array:
    """Takes the mean of the last dim away, divides by (the unbiased standard deviation + eps), multiplies by `scale`
    and adds `bias`; see `layer_norm`."""
    wide = at_least_fp32(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / (x.shape[-1] - 1))
    return (centred / (deviation + eps) * scale + bias).astype(x.dtype)
