"""LoopLM: embed, prelude, the shared block R times, coda, norm, head.

    e      = prelude(embed(tokens))
    s_0    = e, or zeros, or drawn            config.state_init
    s_t    = core(s_{t-1}, e)                 t = 1..R, one shared block of L layers
    h_t    = norm(coda(read_out(s_t)))        what the head reads
    exit_t = sigmoid(gate(s_t))               what decides when a token may leave

The number of loops is an argument. The model knows no steps, hosts or losses; names of dims are in `__init__.py`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import Model, Place
from looplm.metrics.loop_stats import LoopStatistics, loop_statistics
from looplm.model.block import Stack
from looplm.model.context import Context, KeysValues
from looplm.model.core import Core
from looplm.model.gates import ExitGate, exit_loop, log_exit_distribution
from looplm.model.init import initializers
from looplm.model.layers import Embedding, Linear, build_norm, parameter
from looplm.model.loop import Depth, run_loops
from looplm.model.routing import Routed, nothing
from looplm.model.state_init import initial_state
from looplm.model.value_embedding import Embedded, ValueEmbedding
from looplm.ops.precision import at_least_fp32
from looplm.ops.softcap import softcap
from looplm.sharding.collective import Whole, gather_sequence, lay_out, per_channel, split_sequence
from looplm.sharding.rules import activation_spec

ReadLoops = Literal["last", "all"] | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer visit, one slot per loop. None where there is no such part."""

    prelude: KeysValues | None
    """Each (layers, B, T, K, H)."""
    block: KeysValues
    """Each (R, L, B, T, K, H)."""
    coda: KeysValues | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What a forward pass gives; R counts the collected loops, the last of which is the last loop."""

    hidden_RBSD: jax.Array
    """What the head reads."""
    gate_logits_RBS: jax.Array | None
    """logit of the exit probability, float32; None without a gate."""
    active_RB: jax.Array | None
    """(R, 1) or (R, B), False for loops of the window that did not run; None when all did."""
    cache: Cache | None
    window: int = field(metadata={"static": True})
    """Loops of the window, read or not."""
    statistics: LoopStatistics | None
    """Of the last loop; None when not asked for."""
    routing: dict[Place, Routed]
    """What routers did in every visit, leaves (T, B, L, ...): T = 1 for the prelude, the loops of the window, or what
    was read by the coda. Empty when not asked for."""
    loops_RB: jax.Array
    """Number of every loop of the window, from 0; see `Depth.numbers_RB`."""
    read_RB: jax.Array | None = None
    """Like active_RB, for the loops that were read; None where all of them ran."""

    @property
    def log_exit_RBS(self) -> jax.Array | None:
        """log of the exit distribution over the collected loops; None without a gate."""
        return None if self.gate_logits_RBS is None else log_exit_distribution(self.gate_logits_RBS, self.active_RB)


class LoopLM(nnx.Module):
    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        init = initializers(config)

        def stack(place: Place) -> Stack | None:
            return Stack(config, place, rngs=rngs) if config.layers_of(place) else None

        self.config = config
        self.embedding = Embedding(rngs, init["embedding"], config.vocab_size, config.dim)
        self.value_embedding = ValueEmbedding(config, rngs=rngs) if config.value_embedding else None
        self.prelude, self.coda = stack("prelude"), stack("coda")
        self.prelude_norm = build_norm(config, rngs=rngs) if config.prelude_norm else None
        self.core = Core(config, rngs=rngs)
        self.gate = ExitGate(config, rngs=rngs) if config.exit_gate else None
        D, out = config.dim, ("batch", "residual", "embed")
        self.read_out = (
            Linear(rngs, init["read_out"], "BSD,DE->BSE", (D, D), ("embed", "embed_out"), out, decays=False)
            if config.read_out
            else None
        )
        self.final_norm = build_norm(config, rngs=rngs) if config.final_norm else None
        shape, axes = (config.vocab_size, config.dim), ("vocab", "embed")
        self.head = None if config.tie_embeddings else parameter(rngs, init["head"], shape, axes)
        self.head_bias = (
            parameter(rngs, init["head_bias"], shape[:1], axes[:1], elementwise=True) if config.head_bias else None
        )

    def __call__(
        self,
        tokens_BS: jax.Array,
        context: Context,
        depth: Depth,
        *,
        dtype: jax.typing.DTypeLike,
        read_loops: ReadLoops = "last",
        exit_threshold: float | None = None,
        with_statistics: bool = False,
        initial_state_BSD: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Output:
        """Runs the model.

        Args:
            tokens_BS: ids below the vocabulary size, int32.
            context: positions, mask and how to run.
            depth: how many loops, and which of them carry a gradient.
            dtype: compute type of the matrix products.
            read_loops: of which loops of the window hidden states are wanted; an int array of places in the window
                wants those.
            exit_threshold: read every token's state at the loop where its cumulative exit probability reaches this.
            with_statistics: whether to measure what the last loop does to the state.
            initial_state_BSD: overrides the first state.
            cache: keys and values of earlier positions; comes back updated.
        """
        embedded = self.value_embedding(tokens_BS, dtype) if self.value_embedding else Embedded()
        embedded_BSD = self.embedding(tokens_BS, dtype) * jnp.asarray(self.config.embedding_scale, dtype)
        x_BSD, prelude_cache, routing = embedded_BSD, None, dict[Place, Any]()
        if self.prelude:
            x_BSD, prelude_cache, routed = self.prelude(
                x_BSD, context, cache.prelude if cache else None, embedded.prelude
            )
            routing["prelude"] = jax.tree.map(lambda leaf: leaf[None], routed)
        if self.prelude_norm:
            x_BSD = self.prelude_norm(x_BSD)
        if initial_state_BSD is None:
            state_BSD = initial_state(
                self.config.state_init, input_BSD=x_BSD, embedded_BSD=embedded_BSD, context=context
            )
        else:
            state_BSD = split_sequence(initial_state_BSD.astype(dtype))

        core_graph, core_parameters = nnx.split(self.core)
        in_loop = context
        if self.config.residual_step == "inverse_loops":
            in_loop = replace(context, residual_scale=1 / jnp.reshape(depth.num_loops, (-1, 1, 1)))

        # The statistics compare the last three states: the driver carries two, which nothing differentiates.
        lookback = 2 if with_statistics else 0
        before = Routed()
        if context.with_routing:
            before = nothing(
                self.config, "block", tokens_BS, at_least_fp32(state_BSD).dtype, context.with_router_logits
            )
        first = (state_BSD, before, *(jax.lax.stop_gradient(state_BSD),) * lookback)

        def step(
            parameters: nnx.State, states: tuple, inputs: tuple, cache: KeysValues | None, t_B: jax.Array
        ) -> tuple[tuple, KeysValues | None]:
            (input_BSD, embedded_nBSKH), (state_BSD, before, *earlier) = inputs, states
            core, this_loop = nnx.merge(core_graph, parameters), replace(in_loop, loop_B=t_B)
            new_BSD, cache, routed = core.step(state_BSD, input_BSD, this_loop, cache, embedded_nBSKH, before)
            return (new_BSD, routed, *jax.lax.stop_gradient((state_BSD, *earlier)[:lookback])), cache

        keep_states = exit_threshold is not None or not isinstance(read_loops, str) or read_loops == "all"

        def collect(states: tuple) -> tuple:
            state_BSD, routed, *_ = states
            return state_BSD if keep_states else None, self.gate(state_BSD) if self.gate else None, routed

        (state_BSD, _, *earlier), (states_RBSD, gate_logits_RBS, routing["block"]), block_cache = run_loops(
            step,
            core_parameters,
            first,
            (x_BSD, embedded.block),
            depth,
            collect=collect,
            per_loop=cache.block if cache else None,
            remat=context.remat,
            unroll=context.unroll,
        )
        if gate_logits_RBS is not None:
            gate_logits_RBS = lay_out(gate_logits_RBS, "loops", "batch", "sequence")
        statistics = loop_statistics(*map(gather_sequence, (state_BSD, *earlier))) if earlier else None

        coda_cache, read_RB = None, None
        if exit_threshold is None and keep_states:
            assert cache is None, "the coda's cache belongs to one depth"
            wanted_RBSD, read_RB = states_RBSD, depth.active_RB
            if not isinstance(read_loops, str):
                wanted_RBSD, read_RB = jax.tree.map(lambda leaf: leaf[read_loops], (states_RBSD, read_RB))
            hidden_RBSD, _, routing["coda"] = jax.lax.map(
                lambda state_BSD: self.read(state_BSD, context, embedded.coda), wanted_RBSD
            )
        else:
            if exit_threshold is not None:
                exit_RBS = jnp.exp(log_exit_distribution(gate_logits_RBS, depth.active_RB))
                index_1BS1 = exit_loop(exit_RBS, exit_threshold)[None, :, :, None] - 1
                state_BSD = jnp.take_along_axis(states_RBSD, index_1BS1, axis=0)[0]
            hidden_BSD, coda_cache, routed = self.read(state_BSD, context, embedded.coda, cache.coda if cache else None)
            hidden_RBSD, routing["coda"] = jax.tree.map(lambda leaf: leaf[None], (hidden_BSD, routed))
        new_cache = Cache(prelude_cache, block_cache, coda_cache) if cache else None
        routing = {place: routed for place, routed in routing.items() if any(routed)}
        return Output(
            hidden_RBSD,
            gate_logits_RBS,
            depth.active_RB,
            new_cache,
            depth.window,
            statistics,
            routing,
            depth.numbers_RB,
            read_RB,
        )

    def read(
        self,
        state_BSD: jax.Array,
        context: Context,
        embedded_nBSKH: jax.Array | None,
        cache: KeysValues | None = None,
    ) -> tuple[jax.Array, KeysValues | None, Routed]:
        """From a loop's state to what the head reads: read-out, coda, final norm. Returns (hidden, coda's cache, what
        its routers did)."""
        x_BSD = self.read_out(state_BSD) if self.read_out else state_BSD
        if self.config.norm_before_coda and self.final_norm:
            x_BSD = self.final_norm(x_BSD)
        routed = Routed()
        if self.coda:
            x_BSD, cache, routed = self.coda(x_BSD, context, cache, embedded_nBSKH)
        return gather_sequence(self.final_norm(x_BSD) if self.final_norm else x_BSD), cache, routed

    def contraction(self) -> dict[str, jax.Array]:
        """What the parameters alone say about how the state moves, by metric name."""
        return self.core.injection.contraction()

    @property
    def head_VD(self) -> jax.Array | Whole:
        """To be cast where it is used: in training its gradient is summed in another type."""
        return (self.embedding.table if self.head is None else self.head).get_value()

    @property
    def head_bias_V(self) -> jax.Array | Whole | None:
        """To be cast like the head, but to float32 at least."""
        return None if self.head_bias is None else self.head_bias.get_value()

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """(B, S, V) in hidden's type. Training never calls it: see `ops.cross_entropy`."""
        logits_BSV = jnp.einsum(
            "BSD,VD->BSV", hidden_BSD, self.head_VD.astype(hidden_BSD.dtype),
            out_sharding=activation_spec("batch", "sequence", "vocab"),
        )  # fmt: skip
        if self.head_bias_V is not None:
            wide_BSV = at_least_fp32(logits_BSV)
            logits_BSV = per_channel(jnp.add, [self.head_bias_V.astype(wide_BSV.dtype)], wide_BSV)
        return softcap(logits_BSV, self.config.logit_softcap).astype(hidden_BSD.dtype)
