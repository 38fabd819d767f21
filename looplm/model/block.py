"""One layer, and a stack of layers that share a shape."""

import jax
from flax import nnx

from looplm.config.schema import Model
from looplm.model.attention import Attention
from looplm.model.context import Context, KeysValues
from looplm.model.feed_forward import SwiGLU
from looplm.model.init import initializers
from looplm.model.layers import RMSNorm


class Layer(nnx.Module):
    """x + attention, then x + feed-forward; norms before each branch, and with `sandwich` also after it (Ouro)."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return RMSNorm(rngs, initializers(config)["norm"], config.dim, config.norm_eps)

        sandwich = config.norm_placement == "sandwich"
        self.attention_norm, self.attention = norm(), Attention(config, rngs=rngs)
        self.attention_out_norm = norm() if sandwich else None
        self.feed_forward_norm, self.feed_forward = norm(), SwiGLU(config, rngs=rngs)
        self.feed_forward_out_norm = norm() if sandwich else None

    def __call__(
        self, x_BSD: jax.Array, context: Context, cache: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        branch_BSD, cache = self.attention(self.attention_norm(x_BSD), context, cache)
        x_BSD += self.attention_out_norm(branch_BSD) if self.attention_out_norm else branch_BSD
        branch_BSD = self.feed_forward(self.feed_forward_norm(x_BSD))
        x_BSD += self.feed_forward_out_norm(branch_BSD) if self.feed_forward_out_norm else branch_BSD
        return x_BSD, cache


class Stack(nnx.Module):
    """Layers one after the other; their parameters are stacked on a leading dim and scanned over, so that compile time
    does not grow with the number of layers."""

    def __init__(self, config: Model, num_layers: int, *, rngs: nnx.Rngs):
        create = nnx.vmap(lambda rngs: Layer(config, rngs=rngs), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=num_layers)(create)(rngs)
        self.num_layers = num_layers

    def __call__(
        self, x_BSD: jax.Array, context: Context, cache: KeysValues | None = None
    ) -> tuple[jax.Array, KeysValues | None]:
        """cache: (keys, values), each (num_layers, B, T, K, H), or None."""
        graph, parameters = nnx.split(self.layers)

        def apply(x_BSD: jax.Array, layer: tuple) -> tuple[jax.Array, KeysValues | None]:
            parameters, cache = layer
            return nnx.merge(graph, parameters)(x_BSD, context, cache)

        if context.remat != "none":
            apply = jax.checkpoint(apply)
        return jax.lax.scan(apply, x_BSD, (parameters, cache), unroll=self.num_layers if context.unroll else 1)
