"""Room for the keys and values of a generation."""

import jax
import jax.numpy as jnp

from looplm.config.schema import Model
from looplm.model.lm import Cache


def new_cache(config: Model, *, batch_size: int, length: int, num_loops: int, dtype: jax.typing.DTypeLike) -> Cache:
    """An empty cache with a slot of its own for every layer visit: loop t of layer l never sees another loop's keys.

    Holds 2 * (prelude + num_loops * L + coda) * B * length * K * H numbers.
    """
    kv_heads = config.num_kv_heads or config.num_heads
    head_dim = config.head_dim or config.dim // config.num_heads

    def room(*layers: int) -> tuple[jax.Array, jax.Array]:
        shape = (*layers, batch_size, length, kv_heads, head_dim)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)

    return Cache(
        prelude=room(config.prelude_layers) if config.prelude_layers else None,
        block=room(num_loops, config.block_layers),
        coda=room(config.coda_layers) if config.coda_layers else None,
    )
