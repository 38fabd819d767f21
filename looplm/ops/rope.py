"""Rotary positions (arXiv 2104.09864), half-rotation layout: dims i and i + H/2 form a pair."""

import jax
import jax.numpy as jnp

from looplm.ops.precision import at_least_fp32


def rotary(x_BSNH: jax.Array, positions_BS: jax.Array, *, theta: float) -> jax.Array:
    """Rotates every pair by position * theta^(-2i/H). Returns like x; angles and products in float32."""
    half = x_BSNH.shape[-1] // 2
    x_BSNH_wide = at_least_fp32(x_BSNH)
    dtype = x_BSNH_wide.dtype
    frequency_h = theta ** -(jnp.arange(half, dtype=dtype) / half)
    angle_BS1h = positions_BS[:, :, None, None].astype(dtype) * frequency_h
    cos, sin = jnp.cos(angle_BS1h), jnp.sin(angle_BS1h)
    first, second = x_BSNH_wide[..., :half], x_BSNH_wide[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BSNH.dtype)
