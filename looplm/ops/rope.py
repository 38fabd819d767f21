"""Rotary positions (arXiv 2104.09864): a pair of dims is turned by position * frequency."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from looplm.config.schema import LinearScaling, RampScaling, Rope, YarnScaling
from looplm.ops.precision import at_least_fp32


def rotary(x_BSNH: jax.Array, positions_BS: jax.Array, config: Rope) -> jax.Array:
    """Turns every pair of the dims of every head that turn, and sharpens them where the scaling does. Returns like x;
    angles and products in float32."""
    if (turned := config.turned(x_BSNH.shape[-1])) < x_BSNH.shape[-1]:
        whole = rotary(x_BSNH[..., :turned], positions_BS, config.model_copy(update={"fraction": 1.0}))
        return jnp.concatenate([whole, x_BSNH[..., turned:]], axis=-1)
    x_wide = at_least_fp32(x_BSNH)
    frequency_h = jnp.asarray(frequencies(config, x_BSNH.shape[-1]), x_wide.dtype)
    angle_BS1h = positions_BS[:, :, None, None].astype(x_wide.dtype) * frequency_h
    cos, sin = jnp.cos(angle_BS1h), jnp.sin(angle_BS1h)
    if isinstance(config.scaling, YarnScaling) and (sharpening := config.scaling.sharpening) != 1.0:
        cos, sin = cos * sharpening, sin * sharpening
    split, join = LAYOUTS[config.layout]
    first, second = split(x_wide)
    return join(first * cos - second * sin, second * cos + first * sin).astype(x_BSNH.dtype)


def frequencies(config: Rope, head_dim: int) -> np.ndarray:
    """Radians per position of every pair, (H/2,) float64: theta^(-2i/H), then the scaling; H counts dims that turn."""
    frequency_h = config.theta ** -(np.arange(0, head_dim, 2) / head_dim)
    match config.scaling:
        case LinearScaling(factor=factor):
            return frequency_h / factor
        case RampScaling() as scaling:
            # A ramp over the number of turns that the original context holds: 0 stretches, 1 keeps.
            turns_h = scaling.original_length * frequency_h / (2 * math.pi)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            kept_h = np.clip((turns_h - low) / (high - low), 0, 1)
            return frequency_h * (kept_h + (1 - kept_h) / scaling.factor)
        case YarnScaling() as scaling:
            stretched_h = _ramp_of_dims(scaling, config.theta, head_dim)
            return frequency_h * (1 - stretched_h + stretched_h / scaling.factor)
        case _:
            return frequency_h


def _ramp_of_dims(scaling: YarnScaling, theta: float, head_dim: int) -> np.ndarray:
    """How far every pair is stretched, (H/2,), from 0 to 1. The pair i turns L theta^(-2i/H) / 2 pi times."""
    turns_at_start = scaling.original_length / (2 * math.pi)
    first, last = (
        head_dim * math.log(turns_at_start / turns) / (2 * math.log(theta))
        for turns in (scaling.fast_turns, scaling.slow_turns)
    )
    if scaling.whole_dims:
        first, last = math.floor(first), math.ceil(last)
    # The published code ends the ramp at dims and not at pairs.
    first, last = max(first, 0), min(last, head_dim - 1)
    return np.clip((np.arange(head_dim // 2) - first) / ((last - first) or 0.001), 0, 1)


def _split_halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _join_halves(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.concatenate([first, second], axis=-1)


def _split_neighbours(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x[..., 0::2], x[..., 1::2]


def _join_neighbours(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)


LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "half": (_split_halves, _join_halves),
    "interleaved": (_split_neighbours, _join_neighbours),
}
"""How a head is cut into the first and second dims of its pairs, and put together again."""
