"""Compressed memory: what is made of the tokens that leave a memory (Compressive Transformer, arXiv 1911.05507).

What compresses learns from one loss alone: the heads of its layer should read of the compressed places what they read
of the tokens. Nothing else learns from that loss, and a memory hands no gradient on.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import CompressiveMemory, Model
from looplm.model.convolution import biased
from looplm.model.init import Init
from looplm.model.layers import Linear, Module, parameter
from looplm.model.memory import NOBODY
from looplm.model.residual import Pre
from looplm.ops.attention import Mask
from looplm.ops.precision import at_least_fp32

if TYPE_CHECKING:
    from looplm.model.attention import Attention


class Compressed(NamedTuple):
    """What a layer makes of the tokens that leave its memory."""

    places_BnD: jax.Array | None = None
    """The new places of the compressed memory, without gradient."""
    loss_B: jax.Array | None = None
    """The reconstruction, a mean over the tokens of the sequence, its weight included; float32 at least."""


NOTHING = Compressed()


class Convolution(nnx.Module):
    """sum_k kernel[k] x[n c + k] + bias: as many tokens as the stride is long."""

    def __init__(self, rate: int, dim: int, init: Init, *, rngs: nnx.Rngs):
        shape, axes = (rate, dim, dim), ("one", "embed", "embed_out")
        self.linear = Linear(rngs, init.matrix, "BncD,cDE->BnE", shape, axes, ("batch", "one", "embed"))
        self.bias = parameter(rngs, zeros, (dim,), ("embed",), elementwise=True)

    def __call__(self, x_BncD: jax.Array) -> jax.Array:
        return biased(self.linear(x_BncD), self.bias)


class Compression(nnx.Module):
    """The compressed memory of one layer."""

    def __init__(self, config: Model, kind: CompressiveMemory, init: Init, *, rngs: nnx.Rngs):
        self.kind = kind
        learned = kind.compression == "convolution"
        self.convolution = Convolution(kind.rate, config.dim, init, rngs=rngs) if learned else None

    def __call__(
        self, memory_BMD: jax.Array, entered_BSD: jax.Array, attention: "Attention", residual: Pre, mask: Mask
    ) -> Compressed:
        """Compress the tokens that the sequence takes the place of.

        Args:
            memory_BMD: what the layer saw from before the sequence, the compressed places first.
            entered_BSD: what enters the layer now.
            attention, residual: whose heads read, and what they read; both are constants here.
            mask: that of the sequence behind its memory.
        """
        first, rate = self.kind.compressed_length, self.kind.rate
        batch, length = entered_BSD.shape[:2]
        leaving = slice(first, first + length)
        assert mask.segments_BS is not None, "see memory.behind"
        assert mask.key_segments_BT is not None, "see memory.behind"
        segments_Bnc = mask.key_segments_BT[:, leaving].reshape(batch, -1, rate)
        of_one_Bn = jnp.all(segments_Bnc == segments_Bnc[..., :1], axis=-1)
        segments_Bn = jnp.where(of_one_Bn, segments_Bnc[..., 0], NOBODY)
        old_BSD, entered_BSD = jax.lax.stop_gradient((memory_BMD[:, leaving], entered_BSD))
        new_BnD = self._fewer(old_BSD.reshape(batch, -1, rate, old_BSD.shape[-1]))

        attention, residual = constant(attention), constant(residual)
        reads_BSD = residual.recalled(entered_BSD).keys_of_BMD

        def read(places_BTD: jax.Array, segments_BT: jax.Array) -> jax.Array:
            others = Mask("full", None, segments_BT.shape[1], segments_BS=mask.segments_BS, key_segments_BT=segments_BT)
            return at_least_fp32(attention.by_content(reads_BSD, residual.recalled(places_BTD), others))

        # Both read the same blocks: what is left out of one is left out of the other.
        missed_BSNH = read(new_BnD, segments_Bn) - read(old_BSD, jnp.repeat(segments_Bn, rate, axis=1))
        sees_BS = jnp.any(mask.segments_BS[:, :, None] == segments_Bn[:, None, :], axis=-1)
        missed_BS = jnp.where(sees_BS, jnp.mean(missed_BSNH**2, axis=(2, 3)), 0)
        return Compressed(jax.lax.stop_gradient(new_BnD), self.kind.loss_weight * jnp.mean(missed_BS, axis=1))

    def _fewer(self, x_BncD: jax.Array) -> jax.Array:
        match self.kind.compression:
            case "mean":
                return jnp.mean(x_BncD, axis=2)
            case "max":
                return jnp.max(x_BncD, axis=2)
            case "convolution":
                assert self.convolution is not None
                return self.convolution(x_BncD)


def constant(part: Module) -> Module:
    """Return a part whose parameters get no gradient."""
    graph, state = nnx.split(part)
    return nnx.merge(graph, jax.lax.stop_gradient(state))


def build_compression(config: Model, init: Init, *, rngs: nnx.Rngs) -> Compression | None:
    """Make what compresses the memory of one layer; None where nothing is compressed."""
    memory = config.memory
    if not isinstance(memory, CompressiveMemory) or not memory.compressed_length:
        return None
    return Compression(config, memory, init, rngs=rngs)
