"""What stands between the tables of tokens and the residual stream, and what reads a whole sequence."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import HeadTransform, Model
from looplm.model.convolution import biased
from looplm.model.feed_forward import ACTIVATIONS
from looplm.model.init import Init, identity
from looplm.model.layers import Linear, build_norm, parameter, rows_of
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import gather_sequence, use
from looplm.sharding.rules import activation_spec

OUT = ("batch", "residual", "embed")


class Widening(nnx.Module):
    """W norm(embedding + type) + b, of the parts that the config names: from the embeddings' width to the model's
    (arXiv 1909.11942)."""

    def __init__(self, config: Model, init: Init, *, rngs: nnx.Rngs):
        E, D, types = config.embedding_width, config.dim, config.token_types
        self.types = parameter(rngs, init.embedding, (types, E), ("positions", "embed")) if types else None
        self.norm = build_norm(of_width(config, E), rngs=rngs) if config.embedding_norm else None
        mapped = config.embedding_dim is not None
        self.map = Linear(rngs, init.matrix, "BSD,DE->BSE", (E, D), ("embed", "embed_out"), OUT) if mapped else None
        self.bias = parameter(rngs, zeros, (D,), ("embed",), elementwise=True) if mapped else None

    def __call__(self, x_BSE: jax.Array, types_BS: jax.Array | None) -> jax.Array:
        """Return (B, S, D). types_BS: the kind of every token, int32; None: all are of the first."""
        if self.types is not None:
            types_BS = jnp.zeros(x_BSE.shape[:2], jnp.int32) if types_BS is None else types_BS
            x_BSE += rows_of(use(self.types, x_BSE.dtype), types_BS, *OUT)
        if self.norm is not None:
            x_BSE = self.norm(x_BSE)
        return x_BSE if self.map is None else biased(self.map(x_BSE), self.bias)


class Narrowing(nnx.Module):
    """norm(activation(W h + b)): from the model's width to that of the embeddings, which the head reads."""

    def __init__(self, config: Model, kind: HeadTransform, init: Init, *, rngs: nnx.Rngs):
        E, D = config.embedding_width, config.dim
        self.map = Linear(rngs, init.matrix, "BSD,DE->BSE", (D, E), ("embed", "embed_out"), OUT)
        self.bias = parameter(rngs, zeros, (E,), ("embed",), elementwise=True)
        self.activation = ACTIVATIONS[kind.activation]
        self.norm = build_norm(of_width(config, E), rngs=rngs)

    def __call__(self, h_BSD: jax.Array) -> jax.Array:
        return self.norm(self.activation(biased(self.map(h_BSD), self.bias)))


class SequenceHead(nnx.Module):
    """Logits of the classes of a sequence, from the last state of its first token."""

    def __init__(self, config: Model, classes: int, init: Init, *, rngs: nnx.Rngs):
        D = config.dim
        self.pool = parameter(rngs, init.matrix, (D, D), ("embed", "embed_out"), wide=True)
        self.pool_bias = parameter(rngs, zeros, (D,), ("embed",), elementwise=True)
        self.kernel = parameter(rngs, init.matrix, (D, classes), ("embed", "one"), wide=True)
        self.bias = parameter(rngs, zeros, (classes,), ("one",), elementwise=True)

    def pooled(self, h_BSD: jax.Array) -> jax.Array:
        """Return tanh(W h + b) of the first place, (B, D), float32 at least. h_BSD: what `Core.read` gives."""
        h_BD = gather_sequence(at_least_fp32(h_BSD))[:, 0]
        spec = activation_spec("batch", "embed")
        mapped_BD = jnp.einsum("BD,DE->BE", h_BD, use(self.pool, h_BD.dtype), out_sharding=spec)
        return jnp.tanh(biased(mapped_BD, self.pool_bias))

    def __call__(self, h_BSD: jax.Array) -> jax.Array:
        """Return the logits (B, classes), float32 at least."""
        pooled_BD = self.pooled(h_BSD)
        spec = activation_spec("batch", "one")
        logits_BC = jnp.einsum("BD,DC->BC", pooled_BD, use(self.kernel, pooled_BD.dtype), out_sharding=spec)
        return biased(logits_BC, self.bias)


def of_width(config: Model, width: int) -> Model:
    """Return the config with another width, for norms of what is no residual stream."""
    return config.model_copy(update={"dim": width})


def build_widening(config: Model, init: Init, *, rngs: nnx.Rngs) -> Widening | None:
    """Make what follows the table of tokens, if anything does."""
    named = config.embedding_dim is not None or config.embedding_norm or config.token_types
    return Widening(config, init, rngs=rngs) if named else None


def build_read_out(config: Model, init: Init, *, rngs: nnx.Rngs) -> Linear | None:
    """Make the map between the loops and the coda, if there is one."""
    if config.read_out is None:
        return None
    first = identity if config.read_out.init == "identity" else init.matrix
    shape, axes = (config.dim, config.dim), ("embed", "embed_out")
    return Linear(rngs, first, "BSD,DE->BSE", shape, axes, OUT, decays=False)
