"""One layer, and a stack of layers that share a shape."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from looplm.config.schema import Model
from looplm.model.attention import Attention
from looplm.model.context import Context, KeysValues
from looplm.model.feed_forward import build_feed_forward
from looplm.model.residual import PLACEMENTS
from looplm.sharding.collective import gather_sequence, split_sequence

KEPT_NAMES = ("attention_out", "feed_forward_out")
"""What `remat = names` keeps of every layer."""


class Layer(nnx.Module):
    """Attention, then feed-forward, each a branch of the residual stream."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        residual = PLACEMENTS[config.norm_placement]
        self.attention_residual, self.attention = residual(config, rngs=rngs), Attention(config, rngs=rngs)
        self.feed_forward_residual = residual(config, rngs=rngs)
        self.feed_forward = build_feed_forward(config, rngs=rngs)

    def __call__(
        self, x_BSD: jax.Array, context: Context, cache: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        def attend(h_BSD: jax.Array) -> tuple[jax.Array, KeysValues | None]:
            out_BSD, new_cache = self.attention(gather_sequence(h_BSD), context, cache)
            return checkpoint_name(split_sequence(out_BSD), KEPT_NAMES[0]), new_cache

        def transform(h_BSD: jax.Array) -> tuple[jax.Array, None]:
            out_BSD = self.feed_forward(gather_sequence(h_BSD))
            return checkpoint_name(split_sequence(out_BSD), KEPT_NAMES[1]), None

        x_BSD, cache = self.attention_residual(x_BSD, attend, context.residual_scale)
        x_BSD, _ = self.feed_forward_residual(x_BSD, transform, context.residual_scale)
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

        if context.remat == "names":
            apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(*KEPT_NAMES))
        elif context.remat != "none":
            apply = jax.checkpoint(apply)
        return jax.lax.scan(apply, x_BSD, (parameters, cache), unroll=self.num_layers if context.unroll else 1)
