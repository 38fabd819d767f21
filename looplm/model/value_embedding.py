"""Value embeddings (arXiv 2604.12946): a vector by the token's id that is added to the values of some layers.

    v = x W_v + 2 sigmoid(x[:C] W_gate) * table[token]        a gate per token and head

The tables are read once, before the loops: all loops of a layer share what was read, and the gradient of a table is
scattered once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, variance_scaling

from looplm.config.schema import Model
from looplm.model.layers import Linear, parameter
from looplm.sharding.collective import use
from looplm.sharding.rules import activation_spec


class Embedded(NamedTuple):
    """The vectors read for the n layers of a stack that have a table, (n, B, S, K, H); None where none has one."""

    prelude: jax.Array | None = None
    block: jax.Array | None = None
    coda: jax.Array | None = None


class ValueEmbedding(nnx.Module):
    """The tables of all layers that have one, stacked: (n, V, K, H) for each stack of layers."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        K, H = config.kv_heads, config.head_size

        def tables(num_layers: int) -> nnx.Param | None:
            shape = (len(embedded_layers(config, num_layers)), config.vocab_size, K, H)
            axes = ("layers", "value_vocab", "kv_heads", "head_dim")
            return parameter(rngs, normal(1.0), shape, axes) if num_layers else None

        self.prelude, self.block = tables(config.prelude_layers), tables(config.block_layers)
        self.coda = tables(config.coda_layers)

    def __call__(self, tokens_BS: jax.Array, dtype: jax.typing.DTypeLike) -> Embedded:
        spec = activation_spec("layers", "batch", "sequence", "kv_heads", "head_dim")

        def read(tables: nnx.Param | None) -> jax.Array | None:
            return None if tables is None else use(tables, dtype).at[:, tokens_BS].get(out_sharding=spec)

        return Embedded(read(self.prelude), read(self.block), read(self.coda))


class ValueGate(nnx.Module):
    """How much of a value embedding a layer takes, by token and head."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        assert config.value_embedding is not None
        self.channels, K = config.value_embedding.gate_channels, config.kv_heads
        within = variance_scaling(1 / 3, "fan_in", "uniform")  # 1 / sqrt(channels)
        self.linear = Linear(
            rngs,
            within,
            "BSC,CK->BSK",
            (self.channels, K),
            ("channels", "kv_heads"),
            ("batch", "sequence", "kv_heads"),
        )

    def __call__(self, embedded_BSKH: jax.Array, v_BSKH: jax.Array, x_BSD: jax.Array) -> jax.Array:
        """Add the embedding, gated by what the attention reads, x, to the values v: (B, S, K, H)."""
        gate_BSK = 2 * jax.nn.sigmoid(self.linear(x_BSD[..., : self.channels]))
        return v_BSKH + jnp.expand_dims(gate_BSK, -1) * embedded_BSKH


def embedded_layers(config: Model, num_layers: int) -> tuple[int, ...]:
    """List the layers of a stack that have a value embedding: the last one, and every `every`-th before it."""
    if config.value_embedding is None:
        return ()
    return tuple(i for i in range(num_layers) if (num_layers - 1 - i) % config.value_embedding.every == 0)
