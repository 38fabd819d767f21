"""One layer, and a stack of layers that share a shape."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from looplm.config import schema
from looplm.config.schema import FeedForward, Model, NoConditioning, Place
from looplm.model.attention import AddEmbedding, build_attention
from looplm.model.cache import KVCache, Visit
from looplm.model.compression import NOTHING, build_compression
from looplm.model.context import Context
from looplm.model.dropping import draw
from looplm.model.feed_forward import build_dense
from looplm.model.init import Init
from looplm.model.layers import in_group, of_every_loop, stacked
from looplm.model.mixed import places_among, rows_at, scan_layers
from looplm.model.moe import MoE
from looplm.model.positions import RelativeVectors
from looplm.model.report import Report
from looplm.model.residual import PLACEMENTS
from looplm.model.routing import Routing
from looplm.model.streams import Ends
from looplm.model.value_embedding import ValueGate, embedded_layers
from looplm.ops.attention import kept
from looplm.sharding.collective import gather_sequence, split_sequence

LayerCarry = tuple[jax.Array, KVCache | None]
"""What goes from layer to layer: (the residual stream, or several (B, S, n, D), the cache)."""
SAVED_NAMES = ("attention_out", "feed_forward_out")
"""What `remat = names` saves of every layer for the backward pass."""


class Layer(nnx.Module):
    """Attention, then feed-forward, each a branch of the residual stream."""

    def __init__(
        self, config: Model, feed_forward: FeedForward, init: Init, number: int | jax.Array = 0, *, rngs: nnx.Rngs
    ):
        """Make the parts. number: that of the layer among those of its kind in the stack, int32."""
        residual = PLACEMENTS[config.norm_placement]
        over_places = isinstance(config.attention, schema.SequenceMLP)
        self.attention_residual = residual(config, 2 * number, rngs=rngs, over_places=over_places)
        of_a_loop = config if config.attention_loops is None else config.model_copy(update={"norm_loops": None})
        self.attention = of_every_loop(
            lambda rngs: build_attention(of_a_loop, init, rngs=rngs), config.attention_loops, rngs
        )
        self.compression = build_compression(config, init, rngs=rngs)
        self.feed_forward_residual = residual(config, 2 * number + 1, rngs=rngs)
        self.feed_forward = (
            MoE(config, feed_forward, init, rngs=rngs)
            if isinstance(feed_forward, schema.MoE)
            else build_dense(config, feed_forward, init, rngs=rngs)
        )

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        cache: KVCache | None,
        visit: Visit | None,
        add_embedding: AddEmbedding | None = None,
        memory_BMD: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None, Report]:
        """Run the layer once, which is called a visit; see `Attention` for the arguments after the context.

        x: the residual stream (B, S, D), or several (B, S, n, D).

        Returns (the same after the layer, cache, report).
        """

        def attend(h_BSD: jax.Array, read_BSD: jax.Array) -> tuple[jax.Array, tuple]:
            whole_BSD = gather_sequence(h_BSD)
            whole_read_BSD = whole_BSD if read_BSD is h_BSD else gather_sequence(read_BSD)
            recalled = None if memory_BMD is None else self.attention_residual.recalled(memory_BMD)
            out_BSD, *more = self.attention(
                whole_BSD, whole_read_BSD, read_BSD, context, cache, visit, add_embedding, recalled
            )
            return checkpoint_name(split_sequence(out_BSD), SAVED_NAMES[0]), tuple(more)

        def transform(h_BSD: jax.Array, read_BSD: jax.Array) -> tuple[jax.Array, Routing | None]:
            routing = None
            if isinstance(self.feed_forward, MoE):
                out_BSD, routing = self.feed_forward(gather_sequence(h_BSD), read_BSD, context)
            else:
                out_BSD = self.feed_forward(gather_sequence(read_BSD), context.positions_BS)
            return checkpoint_name(split_sequence(out_BSD), SAVED_NAMES[1]), routing

        entered_BSD = jax.lax.stop_gradient(x) if context.reporting.memory else None
        compressed = NOTHING
        if self.compression is not None and memory_BMD is not None and entered_BSD is not None:
            compressed = self.compression(
                memory_BMD, entered_BSD, self.attention, self.attention_residual, context.mask
            )
        x, (cache, heads) = self.attention_residual(x, attend, context.residual_scale, context.condition_BD)
        x, experts = self.feed_forward_residual(x, transform, context.residual_scale, context.condition_BD)
        return x, cache, Report(experts, heads, entered_BSD, compressed.loss_B, compressed.places_BnD)


class Kind(NamedTuple):
    """In what layers of one stack may differ."""

    dense: bool
    """Whether it is a dense layer in a stack with experts."""
    embedded: bool
    """Whether it has a value embedding."""


class LayerData(NamedTuple):
    """What a layer has for itself; of several layers with a leading dim."""

    parameters: nnx.State
    number: jax.Array | None
    """Its place in the stack, int32; None where nobody asks."""
    memory_BMD: jax.Array | None
    """What it sees from before the sequence."""
    embedded: tuple[nnx.State, jax.Array] | None
    """Parameters of its `ValueGate`, and its value embeddings; None where it has none."""


class Stack(nnx.Module):
    """Layers one after the other. Their parameters are stacked on a leading dim and scanned over, so that compile time
    does not grow with the number of layers; dense layers among layers with experts have a stack of their own."""

    def __init__(self, config: Model, place: Place, *, rngs: nnx.Rngs):
        feed_forward, num_layers, init = config.feed_forward_of(place), config.layers_of(place), Init.of(config)
        dense = feed_forward.dense_layers if isinstance(feed_forward, schema.MoE) else ()
        of_layers = config
        if place != "block":
            alone = {"norm_loops": None, "attention_loops": None, "memory": None, "conditioning": NoConditioning()}
            of_layers = config.model_copy(update=alone)
            if isinstance(feed_forward, schema.MoE):
                feed_forward = feed_forward.model_copy(update={"router_loops": None})

        def layers(feed_forward: FeedForward, count: int) -> Layer:
            def layer(rngs: nnx.Rngs, number: jax.Array) -> Layer:
                return Layer(of_layers, feed_forward, init, number, rngs=rngs)

            return stacked(layer, count, rngs, jnp.arange(count))

        self.layers = in_group("layers", layers(feed_forward, num_layers - len(dense)), place)
        self.dense_layers = (
            in_group("layers", layers(feed_forward.dense, len(dense)), place)
            if isinstance(feed_forward, schema.MoE) and dense
            else None
        )
        embedded = embedded_layers(config, num_layers)
        self.value_gates = (
            in_group("layers", stacked(lambda rngs: ValueGate(config, rngs=rngs), len(embedded), rngs), place)
            if embedded
            else None
        )
        positions = config.positions
        shared = isinstance(positions, schema.RelativePositions) and positions.shared_vectors
        self.relative_vectors = in_group("layers", RelativeVectors(config, rngs=rngs), place) if shared else None
        self.ends = in_group("layers", Ends(config, config.streams, rngs=rngs), place) if config.streams else None
        self.kinds = tuple(Kind(i in dense, i in embedded) for i in range(num_layers))

    def __call__(
        self,
        x_BSD: jax.Array,
        context: Context,
        cache: KVCache | None = None,
        embedded_nBSKH: jax.Array | None = None,
        memory_LBMD: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None, Report]:
        """Run all layers once. Returns (out (B, S, D), cache, report).

        embedded_nBSKH: value embeddings of the n layers that have one.
        memory_LBMD: what every layer also sees, from before the sequence.
        """
        if self.relative_vectors is not None:
            context = replace(context, relative_vectors=self.relative_vectors)
        graphs, parameters = zip(nnx.split(self.layers), nnx.split(self.dense_layers), strict=True)  # by `Kind.dense`
        gate_graph, gates = nnx.split(self.value_gates)
        slot = None if cache is None else cache.slot(context.loop.number_B, context.loop.call)
        dense = [kind.dense for kind in self.kinds]
        rows = places_among([not flag for flag in dense]), places_among(dense)
        embedded_rows = places_among([kind.embedded for kind in self.kinds])

        def data(layers: range) -> LayerData:
            kind = self.kinds[layers[0]]
            own = rows_at(parameters[kind.dense], [rows[kind.dense][i] for i in layers])
            embedded = rows_at((gates, embedded_nBSKH), [embedded_rows[i] for i in layers]) if kind.embedded else None
            counted = cache is not None or context.drop_words_2 is not None
            number = jnp.arange(layers.start, layers.stop, layers.step) if counted else None
            return LayerData(own, number, rows_at(memory_LBMD, layers), embedded)

        def visit_layer(kind: Kind, carry: LayerCarry, layer: LayerData) -> tuple[LayerCarry, Report]:
            x, cache = carry
            visit, add_embedding = None, None
            if slot is not None and layer.number is not None:
                visit = Visit(slot, layer.number, context.row_B)
            if layer.embedded is not None:
                gate, embedded_BSKH = layer.embedded
                add_embedding = partial(nnx.merge(gate_graph, gate), embedded_BSKH)
            module = nnx.merge(graphs[kind.dense], layer.parameters)
            draw(module, context, layer.number)
            x, cache, report = module(x, context, cache, visit, add_embedding, layer.memory_BMD)
            return (x, cache), report

        apply: Any = visit_layer
        if context.remat != "none":
            saved = SAVED_NAMES if context.remat == "names" else ()
            policy = jax.checkpoint_policies.save_from_both_policies(
                jax.checkpoint_policies.save_only_these_names(*saved), kept
            )
            apply = jax.checkpoint(visit_layer, policy=policy, static_argnums=0)
        x = x_BSD if self.ends is None else self.ends.spread(x_BSD)
        (x, cache), report = scan_layers(apply, (x, cache), self.kinds, data, unroll=context.unroll)
        return x if self.ends is None else self.ends.collapse(x), cache, report
