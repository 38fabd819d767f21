"""One layer, and a stack of layers that share a shape."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from looplm.config.schema import Model
from looplm.model.attention import Attention, Mix
from looplm.model.context import Context, KeysValues
from looplm.model.feed_forward import build_feed_forward
from looplm.model.layers import stacked
from looplm.model.residual import PLACEMENTS
from looplm.model.value_embedding import ValueGate, num_embedded
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
        self, x_BSD: jax.Array, context: Context, cache: KeysValues | None, mix: Mix | None = None
    ) -> tuple[jax.Array, KeysValues | None]:
        def attend(h_BSD: jax.Array) -> tuple[jax.Array, KeysValues | None]:
            out_BSD, new_cache = self.attention(gather_sequence(h_BSD), context, cache, mix)
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
        self.layers = stacked(lambda rngs: Layer(config, rngs=rngs), num_layers, rngs)
        self.group_size = config.value_embedding.every if config.value_embedding else 1
        count = num_embedded(config, num_layers)
        self.value_gates = stacked(lambda rngs: ValueGate(config, rngs=rngs), count, rngs) if count else None

    def __call__(
        self,
        x_BSD: jax.Array,
        context: Context,
        cache: KeysValues | None = None,
        embedded_nBSKH: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Returns (out, cache).

        cache: (keys, values), each (num_layers, B, T, K, H), or None.
        embedded_nBSKH: for the layers that have a value embedding.
        """
        graph, parameters = nnx.split(self.layers)
        gate_graph, gates = nnx.split(self.value_gates)

        def apply(x_BSD: jax.Array, xs: tuple) -> tuple[jax.Array, KeysValues | None]:
            (parameters, cache), embedded = xs
            mix = None if embedded is None else partial(nnx.merge(gate_graph, embedded[0]), embedded[1])
            return nnx.merge(graph, parameters)(x_BSD, context, cache, mix)

        if context.remat == "names":
            apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(*KEPT_NAMES))
        elif context.remat != "none":
            apply = jax.checkpoint(apply)
        layers = (parameters, cache)
        if embedded_nBSKH is None:
            return jax.lax.scan(apply, x_BSD, (layers, None), unroll=context.unroll)
        return in_groups(apply, x_BSD, layers, (gates, embedded_nBSKH), self.group_size, unroll=context.unroll)


def in_groups(
    apply: Callable[[jax.Array, tuple], tuple], x_BSD: jax.Array, layers: Any, extras: Any, size: int, *, unroll: bool
) -> tuple[jax.Array, Any]:
    """Scans over groups of `size` layers, the last of which alone gets an extra; a first group may be smaller.

    Args:
        apply: (x, (layer, its extra or None)) -> (x, what is kept of the layer).
        layers, extras: trees with leading dims `num_layers` and `num_groups`.

    Returns:
        (x, what is kept, with leading dim `num_layers`).
    """

    def group(x_BSD: jax.Array, xs: tuple) -> tuple[jax.Array, list]:
        (*plain, last), extra = xs
        kept = []
        for layer, its_extra in (*((layer, None) for layer in plain), (last, extra)):
            x_BSD, one = apply(x_BSD, (layer, its_extra))
            kept.append(one)
        return x_BSD, kept

    def take(tree: Any, index: int | slice) -> Any:
        return jax.tree.map(lambda leaf: leaf[index], tree)

    num_layers = jax.tree.leaves(layers)[0].shape[0]
    first, kept = num_layers % size, list[Any]()
    if first:
        x_BSD, kept = group(x_BSD, ([take(layers, i) for i in range(first)], take(extras, 0)))
        kept = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)]
    if first < num_layers:
        # Strided slices and no reshape, which JAX 0.10 refuses for parameters marked `reduced`.
        places = [take(layers, slice(first + i, None, size)) for i in range(size)]
        x_BSD, many = jax.lax.scan(group, x_BSD, (places, take(extras, slice(first > 0, None))), unroll=unroll)
        kept.append(jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), *many))
    return x_BSD, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *kept)
