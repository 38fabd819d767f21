"""Slices of rows, of any sizes, from every device of a mesh axis to every other; for use in a `shard_map`.

XLA has the exchange for TPU and GPU. For a CPU it is written as an all-gather of all rows and a gather of those that
are meant for us. Its gradient is the same exchange the other way.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Slices(NamedTuple):
    """What a device sends, to each of p devices h slices; all (p, h) int32."""

    starts: jax.Array
    """First rows, among the sender's."""
    sizes: jax.Array
    """Rows."""
    places: jax.Array
    """Where the first rows get to, among the receiver's."""


def exchange(
    rows_MD: jax.Array, there: Slices, back: Slices, size: int, axis: str, *, gathered: bool = False
) -> jax.Array:
    """The rows that arrive, (size, D); a place that nothing was sent to holds 0.

    Args:
        there: what this device sends. No two slices of all devices meet in a place.
        back: what it would send to bring everything home: `exchange` with the two swapped.
        gathered: go by the all-gather on every platform. It sends p times as many numbers, but for rows of a few
            numbers that is less: a TPU sends a row in pieces of 128.
    """
    return _exchange((size, axis, gathered), rows_MD, there, back)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _exchange(how: tuple[int, str, bool], rows_MD: jax.Array, there: Slices, back: Slices) -> jax.Array:
    size, axis, gathered = how
    by_gather: Callable = partial(_gathered, size=size, axis=axis)
    if gathered:
        return by_gather(rows_MD, there, back)
    ragged: Callable = partial(_ragged, size=size, axis=axis)
    return jax.lax.platform_dependent(rows_MD, there, back, cpu=by_gather, default=ragged)


def _backward(how: tuple[int, str, bool], saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    num_rows, there, back = saved
    _, axis, gathered = how
    return _exchange((num_rows.shape[0], axis, gathered), cotangent, back, there), None, None


_exchange.defvjp(
    lambda how, rows, there, back: (_exchange(how, rows, there, back), (rows[:, :0], there, back)), _backward
)


def _ragged(rows_MD: jax.Array, there: Slices, back: Slices, *, size: int, axis: str) -> jax.Array:
    output = jnp.zeros_like(rows_MD, shape=(size, rows_MD.shape[1]))
    offsets = (x.reshape(-1) for x in (there.starts, there.sizes, there.places, back.sizes))
    return jax.lax.ragged_all_to_all(rows_MD, output, *offsets, axis_name=axis)


def _gathered(rows_MD: jax.Array, there: Slices, back: Slices, *, size: int, axis: str) -> jax.Array:
    """What comes to us is what we would send back: from `back.places`, to `back.starts`."""
    all_rows = jax.lax.all_gather(rows_MD, axis, tiled=True)
    M, p = rows_MD.shape[0], back.starts.shape[0]
    sources = back.places + M * jnp.arange(p, dtype=jnp.int32)[:, None]
    starts, sizes, sources = (x.reshape(-1) for x in (back.starts, back.sizes, sources))
    place_m1 = jnp.arange(size, dtype=jnp.int32)[:, None]
    inside_ms = (place_m1 >= starts) & (place_m1 < starts + sizes)
    source_m = jnp.sum(jnp.where(inside_ms, place_m1 - starts + sources, 0), axis=1)
    source_m = jnp.where(jnp.any(inside_ms, axis=1), source_m, M * p)
    return all_rows.at[source_m].get(mode="fill", fill_value=0)


def windows(
    sizes_pE: jax.Array, index: jax.Array, first: jax.Array | int, size: int
) -> tuple[Slices, Slices, jax.Array]:
    """Rows that every device has sorted by expert, to the devices that hold the experts: (there, back, sizes_h).

    Device d holds the experts d h to (d + 1) h - 1. What comes to it is in the order of its experts, and for each in
    that of the senders; of all this, the places `first` to `first + size - 1`.

    Args:
        sizes_pE: rows of every device for every expert.
        index: of this device.

    Returns:
        sizes_h: rows that arrive here for each of our experts.
    """
    p, E = sizes_pE.shape
    shape = p, p, E // p
    size_sdh = sizes_pE.reshape(shape)
    start_sdh = (jnp.cumsum(sizes_pE, axis=1) - sizes_pE).reshape(shape)
    by_place = size_sdh.transpose(1, 2, 0).reshape(p, E)
    place_sdh = (jnp.cumsum(by_place, axis=1) - by_place).reshape(p, E // p, p).transpose(2, 0, 1) - first
    low_sdh, high_sdh = (jnp.clip(place, 0, size) for place in (place_sdh, place_sdh + size_sdh))
    start_sdh += jnp.clip(low_sdh - place_sdh, 0, size_sdh)
    size_sdh = high_sdh - low_sdh
    return (
        Slices(start_sdh[index], size_sdh[index], low_sdh[index]),
        Slices(low_sdh[:, index], size_sdh[:, index], start_sdh[:, index]),
        jnp.sum(size_sdh[:, index], axis=0),
    )
