"""One layer, and a stack of layers that share a shape."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from looplm.config import schema
from looplm.config.schema import FeedForward, Model, Place
from looplm.model.attention import Attention, Mix
from looplm.model.context import Context, KeysValues
from looplm.model.feed_forward import build_dense
from looplm.model.layers import stacked
from looplm.model.mixed import in_units, interleaved, take, units
from looplm.model.moe import MoE
from looplm.model.residual import PLACEMENTS
from looplm.model.routing import Routed, Routing
from looplm.model.value_embedding import ValueGate, num_embedded
from looplm.sharding.collective import gather_sequence, split_sequence

KEPT_NAMES = ("attention_out", "feed_forward_out")
"""What `remat = names` keeps of every layer."""
Visit = tuple[tuple[KeysValues | None, Routing | None], Routing | None]
"""What is kept of a layer's visit: (its cache, what the routers of its attention did), what that of its experts did."""
Apply = Callable[[jax.Array, tuple], tuple[jax.Array, Visit]]
"""(x, ((parameters, (cache, sets of experts of the attention in the loop before), sets of the feed-forward), extra))
-> (x, visit)."""


class Layer(nnx.Module):
    """Attention, then feed-forward, each a branch of the residual stream."""

    def __init__(self, config: Model, feed_forward: FeedForward, *, rngs: nnx.Rngs):
        residual = PLACEMENTS[config.norm_placement]
        self.attention_residual, self.attention = residual(config, rngs=rngs), Attention(config, rngs=rngs)
        self.feed_forward_residual = residual(config, rngs=rngs)
        self.feed_forward = (
            MoE(config, feed_forward, rngs=rngs)
            if isinstance(feed_forward, schema.MoE)
            else build_dense(config, feed_forward, rngs=rngs)
        )

    def __call__(
        self,
        x_BSD: jax.Array,
        context: Context,
        kept: tuple[KeysValues | None, jax.Array | None],
        before_BSW: jax.Array | None,
        mix: Mix | None = None,
    ) -> tuple[jax.Array, Visit]:
        """kept: (cache, sets of experts of the attention in the loop before); before_BSW: those of the feed-forward."""

        def attend(h_BSD: jax.Array, read_BSD: jax.Array) -> tuple[jax.Array, tuple]:
            whole_BSD = gather_sequence(h_BSD)
            whole_read_BSD = whole_BSD if read_BSD is h_BSD else gather_sequence(read_BSD)
            out_BSD, *new = self.attention(whole_BSD, whole_read_BSD, read_BSD, context, *kept, mix)
            return checkpoint_name(split_sequence(out_BSD), KEPT_NAMES[0]), tuple(new)

        def transform(h_BSD: jax.Array, read_BSD: jax.Array) -> tuple[jax.Array, Routing | None]:
            routing = None
            if isinstance(self.feed_forward, MoE):
                out_BSD, routing = self.feed_forward(gather_sequence(h_BSD), read_BSD, context, before_BSW)
            else:
                out_BSD = self.feed_forward(gather_sequence(read_BSD))
            return checkpoint_name(split_sequence(out_BSD), KEPT_NAMES[1]), routing

        x_BSD, own = self.attention_residual(x_BSD, attend, context.residual_scale)
        x_BSD, routing = self.feed_forward_residual(x_BSD, transform, context.residual_scale)
        return x_BSD, (own, routing)


class Stack(nnx.Module):
    """Layers one after the other; their parameters are stacked on a leading dim and scanned over, so that compile time
    does not grow with the number of layers. Dense layers among such with experts are a stack of their own."""

    def __init__(self, config: Model, place: Place, *, rngs: nnx.Rngs):
        feed_forward, num_layers = config.feed_forward_of(place), config.layers_of(place)
        dense = feed_forward.dense_layers if isinstance(feed_forward, schema.MoE) else ()

        def layers(feed_forward: FeedForward, count: int) -> Layer:
            return stacked(lambda rngs: Layer(config, feed_forward, rngs=rngs), count, rngs)

        self.layers = layers(feed_forward, num_layers - len(dense))
        self.dense_layers = (
            layers(feed_forward.dense, len(dense)) if isinstance(feed_forward, schema.MoE) and dense else None
        )
        self.units = units(tuple(i in dense for i in range(num_layers)))
        self.group_size = config.value_embedding.every if config.value_embedding else 1
        count = num_embedded(config, num_layers)
        self.value_gates = stacked(lambda rngs: ValueGate(config, rngs=rngs), count, rngs) if count else None

    def __call__(
        self,
        x_BSD: jax.Array,
        context: Context,
        cache: KeysValues | None = None,
        embedded_nBSKH: jax.Array | None = None,
        before: Routed | None = None,
    ) -> tuple[jax.Array, KeysValues | None, Routed]:
        """Returns (out, cache, what the routers did).

        cache: (keys, values), each (num_layers, B, T, K, H), or None.
        embedded_nBSKH: for the layers that have a value embedding.
        before: what the routers did in the loop before.
        """
        graph, parameters = nnx.split(self.layers)
        gate_graph, gates = nnx.split(self.value_gates)

        def applied(graph: nnx.GraphDef) -> Apply:
            def apply(x_BSD: jax.Array, xs: tuple) -> tuple[jax.Array, Visit]:
                (parameters, kept, before_BSW), embedded = xs
                mix = None if embedded is None else partial(nnx.merge(gate_graph, embedded[0]), embedded[1])
                return nnx.merge(graph, parameters)(x_BSD, context, kept, before_BSW, mix)

            if context.remat == "names":
                return jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(*KEPT_NAMES))
            return apply if context.remat == "none" else jax.checkpoint(apply)

        before_LBSW, before_heads_LBSW = (
            None if routing is None else jnp.moveaxis(routing.experts_BSW, 1, 0) for routing in before or Routed()
        )
        layers = (parameters, (cache, before_heads_LBSW), before_LBSW)
        if self.dense_layers is not None:
            dense_graph, dense = nnx.split(self.dense_layers)
            x_BSD, kept = in_units(
                (applied(graph), applied(dense_graph)), x_BSD, (parameters, dense), (cache, before_heads_LBSW),
                before_LBSW, self.units, unroll=context.unroll,
            )  # fmt: skip
        elif embedded_nBSKH is None:
            x_BSD, kept = jax.lax.scan(applied(graph), x_BSD, (layers, None), unroll=context.unroll)
        else:
            extras = (gates, embedded_nBSKH)
            x_BSD, kept = in_groups(applied(graph), x_BSD, layers, extras, self.group_size, unroll=context.unroll)
        (cache, heads), feed_forward = kept
        return x_BSD, cache, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), Routed(feed_forward, heads))


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

    num_layers = jax.tree.leaves(layers)[0].shape[0]
    first, kept = num_layers % size, list[Any]()
    if first:
        x_BSD, kept = group(x_BSD, ([take(layers, i) for i in range(first)], take(extras, 0)))
        kept = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)]
    if first < num_layers:
        # Strided slices and no reshape, which JAX 0.10 refuses for parameters marked `reduced`.
        places = [take(layers, slice(first + i, None, size)) for i in range(size)]
        x_BSD, many = jax.lax.scan(group, x_BSD, (places, take(extras, slice(first > 0, None))), unroll=unroll)
        kept.append(interleaved(many))
    return x_BSD, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *kept)
