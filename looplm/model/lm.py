"""LoopLM: enter, the loops, leave, head.

    e      = prelude(embed(tokens))           enter
    s_0    = core.init_state(e)
    s_t    = core.step(s_{t-1}, e)            body: one loop, t = 1..R; a halting rule says who is in it
    h_t    = core.read(s_t)                   what gates, halting rules, coda and head look at
    exit_t = sigmoid(gate(h_t))               the probability that a token may leave
    hidden = norm(coda(read_out(h_t)))        leave: what the head reads

What runs these stages is elsewhere: `forward.py` for whole sequences, `infer/items.py` for writing. The model knows no
depth, training step, host or loss. Names of dims are in `__init__.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import LearnedPositions, Model, Place
from looplm.model.adapt import adapt
from looplm.model.block import Stack
from looplm.model.build_halting import build_halting
from looplm.model.cache import KVCache
from looplm.model.context import Context
from looplm.model.core import build_core
from looplm.model.depth import Loop
from looplm.model.dropping import draw
from looplm.model.ends import Narrowing, SequenceHead, build_read_out, build_widening
from looplm.model.front import Front
from looplm.model.gates import ExitGate, SequenceGate
from looplm.model.halting import Halting
from looplm.model.init import Init
from looplm.model.inputs import Entered, Inputs
from looplm.model.layers import Embedding, LoopParam, build_norm, in_group, parameter
from looplm.model.loop import Step
from looplm.model.output import Carry
from looplm.model.positions import PositionTable
from looplm.model.report import Report, one_visit
from looplm.model.rows import step_among
from looplm.model.value_embedding import Embedded, ValueEmbedding
from looplm.ops.precision import at_least_fp32
from looplm.ops.softcap import softcap
from looplm.sharding.collective import Whole, gather_sequence, per_channel
from looplm.sharding.rules import activation_spec


class Body(NamedTuple):
    """One loop, as the driver runs it."""

    step: Step
    parameters: nnx.State
    """Parameters that all loops share."""
    per_loop: tuple[nnx.State, Any]
    """What every loop gets for itself: (its own parameters, what the caller of the pass gave), with a leading dim of
    loops."""


class LoopLM(nnx.Module):
    """The parameters of a looped language model, and its three stages: enter, body, leave."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        init = Init.of(config)

        def stack(place: Place) -> Stack | None:
            return Stack(config, place, rngs=rngs) if config.layers_of(place) else None

        self.config = config
        self.embedding = Embedding(rngs, init.embedding, config.vocab_size, config.embedding_width)
        self.front = Front(config, init, rngs=rngs) if config.front else None
        self.value_embedding = ValueEmbedding(config, rngs=rngs) if config.value_embedding else None
        self.position_table = (
            PositionTable(config.embedding_width, config.positions, init, rngs=rngs)
            if isinstance(config.positions, LearnedPositions)
            else None
        )
        self.widening = build_widening(config, init, rngs=rngs)
        self.prelude, self.coda = stack("prelude"), stack("coda")
        self.prelude_norm = build_norm(config, rngs=rngs) if config.prelude_norm else None
        self.core, self.halting = build_core(config, rngs=rngs), build_halting(config, rngs=rngs)
        self.gate = in_group("gate", ExitGate(config.dim, config.exit_gate, rngs=rngs)) if config.exit_gate else None
        gated = config.sequence_gate
        self.sequence_gate = in_group("gate", SequenceGate(config.dim, gated, rngs=rngs)) if gated else None
        classified, narrowed = config.sequence_head, config.head_transform
        self.sequence_head = SequenceHead(config, classified.classes, init, rngs=rngs) if classified else None
        self.read_out = build_read_out(config, init, rngs=rngs)
        self.final_norm = build_norm(config, rngs=rngs) if config.final_norm else None
        self.narrowing = Narrowing(config, narrowed, init, rngs=rngs) if narrowed else None
        shape, axes = (config.vocab_size, config.embedding_width if narrowed else config.dim), ("vocab", "embed")
        self.head = None if config.tie_embeddings else parameter(rngs, init.head, shape, axes)
        self.head_bias = (
            parameter(rngs, init.head_bias, shape[:1], axes[:1], elementwise=True) if config.head_bias else None
        )
        adapt(self, self.core, config, rngs=rngs)

    def enter(
        self, tokens_BS: jax.Array, context: Context, dtype: jax.typing.DTypeLike, cache: KVCache | None = None
    ) -> tuple[Inputs, Entered]:
        """Turn tokens into what every loop gets.

        Args:
            tokens_BS: ids below the vocabulary size, int32.
            dtype: compute type of the matrix products; the residual stream has it too.
            cache: the prelude's.
        """
        embedded_BSD, values = self.embed(tokens_BS, context, dtype)
        x_BSD, report = embedded_BSD, Report()
        if self.prelude:
            x_BSD, cache, report = self.prelude(x_BSD, context, cache, values.prelude)
        if self.prelude_norm:
            x_BSD = self.prelude_norm(x_BSD)
        return Inputs(x_BSD, embedded_BSD, tokens_BS, values.block), Entered(values, cache, one_visit(report))

    def embed(self, tokens_BS: jax.Array, context: Context, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, Embedded]:
        """Look up what belongs to tokens alone: (embeddings (B, S, D), value embeddings of all stacks)."""
        values = self.value_embedding(tokens_BS, dtype) if self.value_embedding else Embedded()
        embedded_BSD = self.embedding(tokens_BS, dtype)
        if self.front is not None:
            embedded_BSD = self.front(embedded_BSD, context.ids_B)
        embedded_BSD = embedded_BSD * jnp.asarray(self.config.embedding_scale, dtype)
        if self.position_table is not None:
            embedded_BSD += self.position_table(context.positions_BS, dtype)
        return self.widening(embedded_BSD, context.types_BS) if self.widening else embedded_BSD, values

    def body(self, context: Context, halting: Halting, per_loop: Any = None) -> Body:
        """Return one loop as a function, and its parameters: what training, scoring and writing share. per_loop: what
        every loop gets for itself beside its own parameters; see `run_loops`."""
        graph, own, shared = nnx.split((self.core, halting), LoopParam, ...)

        def step(shared: nnx.State, carry: Carry, inputs: Inputs, loop: Loop) -> tuple[Carry, Report]:
            own, given = loop.own
            core, halting = nnx.merge(graph, own, shared)
            here, h_BSD = replace(context, loop=replace(loop, own=given)), core.read(carry.state)
            draw(core, here)
            halt, admitted = halting.admit(carry.halt, h_BSD, here)
            new, cache, report = step_among(admitted, core, carry.state, inputs, here, carry.cache)
            if context.step_size != 1:
                new = jax.tree.map(lambda old, new: old + context.step_size * (new - old), carry.state, new)
            state, halt = halting.update(halt, carry.state, new, core.read(new), here)
            trail = (jax.lax.stop_gradient(h_BSD), *carry.trail)[: len(carry.trail)]
            return Carry(state, halt, cache, trail), report

        return Body(step, shared, (own, per_loop))

    def leave(
        self, h_BSD: jax.Array, context: Context, entered: Entered, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None, Report]:
        """Turn what is read of a state into what the head reads: read-out, coda, final norm, transform.

        Returns (hidden (B, S, D), the coda's cache, the report of its layers).
        """
        x_BSD, report = self.read_out(h_BSD) if self.read_out else h_BSD, Report()
        if self.config.norm_before_coda and self.final_norm:
            x_BSD = self.final_norm(x_BSD)
        if self.coda:
            x_BSD, cache, report = self.coda(x_BSD, context, cache, entered.values.coda)
        hidden_BSD = self.final_norm(x_BSD) if self.final_norm else x_BSD
        hidden_BSD = gather_sequence(self.narrowing(hidden_BSD) if self.narrowing else hidden_BSD)
        return self.of_tokens(hidden_BSD), cache, report

    def of_tokens(self, x_BSD: jax.Array) -> jax.Array:
        """Cut off what stands in front of the tokens."""
        return x_BSD if self.front is None else x_BSD[:, self.front.places :]

    def predictor(self, context: Context, entered: Entered, cache: KVCache | None) -> Callable[[jax.Array], jax.Array]:
        """Return the function by which halting rules ask for predictions: what is read of a state -> logits (B, S, V).

        cache: the coda's.
        """
        return lambda h_BSD: self.logits(self.leave(h_BSD, context, entered, cache)[0])

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """Return the logits (B, S, V) in hidden's type. Training does without them: see `ops.cross_entropy`."""
        logits_BSV = jnp.einsum(
            "BSD,VD->BSV",
            hidden_BSD,
            self.head_VD.astype(hidden_BSD.dtype),
            out_sharding=activation_spec("batch", "sequence", "vocab"),
        )
        if self.head_bias_V is not None:
            wide_BSV = at_least_fp32(logits_BSV)
            logits_BSV = per_channel(jnp.add, [self.head_bias_V.astype(wide_BSV.dtype)], wide_BSV)
        return softcap(logits_BSV, self.config.logit_softcap).astype(hidden_BSD.dtype)

    @property
    def head_VD(self) -> jax.Array | Whole:
        """The head's matrix. Cast it where it is used: in training its gradient is summed in another type."""
        return (self.embedding.table if self.head is None else self.head).get_value()

    @property
    def head_bias_V(self) -> jax.Array | Whole | None:
        """The head's bias. Cast it where it is used, to float32 at least."""
        return None if self.head_bias is None else self.head_bias.get_value()

    def parameter_metrics(self) -> dict[str, jax.Array]:
        """Return the core's metrics of its parameters; see `Core`."""
        return self.core.parameter_metrics()
