"""The core of the recurrence: how the state moves in one loop.

Neither the driver (`loop.py`) nor the model (`lm.py`) looks into a state. Another kind of recurrence is another core.
"""

from dataclasses import replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import LatentFeedbackCore, LoopStreams, Model, OwnCore, SingleCore, TwoSpeedCore
from looplm.model.block import Stack
from looplm.model.cache import KVCache
from looplm.model.conditioning import build_conditioning
from looplm.model.context import Context
from looplm.model.damping import damped
from looplm.model.groups import Groups
from looplm.model.injection import build_injection
from looplm.model.inputs import Inputs
from looplm.model.latent_feedback import LatentFeedback
from looplm.model.layers import build_norm, in_group, parameter
from looplm.model.report import Report
from looplm.model.state_init import first_vector, initial_state
from looplm.model.streams import Ends, HyperConnection
from looplm.model.two_speed import TwoSpeed
from looplm.sharding.collective import per_channel, use

PLAIN = SingleCore()
State = Any
"""The state: any tree of arrays (B, S, ...)."""


class Core(Protocol):
    """How the state moves in one loop; a Flax module."""

    def init_state(self, inputs: Inputs, context: Context) -> State:
        """Make the state before the first loop."""

    def step(
        self, state: State, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[State, KVCache | None, Report]:
        """Run one loop; `context.loop` says which one.

        Returns (state, cache, report). The state has the structure, shapes and types of the one before: loops are
        scanned over.
        """

    def read(self, state: State) -> jax.Array:
        """Return what gates, halting rules, coda and head may look at, (B, S, D)."""

    def parameter_metrics(self) -> dict[str, jax.Array]:
        """Return metrics that follow from the parameters alone, by name: scalars, such as the share of the state that a
        loop keeps. They are logged in every step."""


class Single(nnx.Module):
    """One stream: state -> inject(state, input) -> shared block -> norm, if there is one at the loop's end.

    `Forward.per_loop`, if it is given, is what the conditioning takes (`trajectory.Moment`), or a memory
    (R, L, B, M, D): what the layers of every loop also see, from before the sequence.
    """

    def __init__(self, config: Model, core: SingleCore = PLAIN, *, rngs: nnx.Rngs):
        self.config, self.core = config, core
        self.injection = in_group("injection", build_injection(config, rngs=rngs))
        self.conditioning = build_conditioning(config, rngs=rngs)
        self.block = Groups(config, core.groups, rngs=rngs) if core.groups > 1 else Stack(config, "block", rngs=rngs)
        self.end_norm = build_norm(config, rngs=rngs) if config.norm_at_loop_end else None
        self.first = first_vector(config.state_init, config.dim, rngs=rngs)

    def init_state(self, inputs: Inputs, context: Context) -> jax.Array:
        return initial_state(
            self.config.state_init,
            input_BSD=inputs.entered_BSD,
            embedded_BSD=inputs.embedded_BSD,
            context=context,
            vector=self.first,
        )

    def step(
        self, state_BSD: jax.Array, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None, Report]:
        if self.config.residual_step == "inverse_loops":
            context = replace(context, residual_scale=1 / jnp.reshape(context.loop.total_B, (-1, 1, 1)))
        injected_BSD = self.injection(state_BSD, inputs.entered_BSD)
        if self.conditioning is not None:
            injected_BSD, context = self.conditioning(injected_BSD, context)
        memory_LBMD = context.loop.own
        x_BSD, cache, report = self.block(injected_BSD, context, cache, inputs.values_nBSKH, memory_LBMD)
        new_BSD = self.end_norm(x_BSD) if self.end_norm else x_BSD
        return damped(self.core, state_BSD, new_BSD, context), cache, report

    def read(self, state_BSD: jax.Array) -> jax.Array:
        return state_BSD

    def parameter_metrics(self) -> dict[str, jax.Array]:
        return self.injection.parameter_metrics()


class Streamed(Single):
    """Several streams, which a loop reads and writes as a branch of a layer does: what the single core makes of what is
    read of them, and a vector, is written to all (arXiv 2604.21254)."""

    def __init__(self, config: Model, core: SingleCore, streams: LoopStreams, *, rngs: nnx.Rngs):
        super().__init__(config, core, rngs=rngs)
        loops, dim = streams.loops, config.dim
        self.connection = HyperConnection(config, streams, 0, loops=loops, rngs=rngs)
        self.vector = (
            parameter(rngs, zeros, (dim,), ("embed",), elementwise=True, loops=loops) if streams.vectors else None
        )
        self.ends = Ends(config, streams, rngs=rngs)

    def init_state(self, inputs: Inputs, context: Context) -> jax.Array:
        return self.ends.spread(super().init_state(inputs, context))

    def step(
        self, state_BSnD: jax.Array, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None, Report]:
        h_BSD, ways = self.connection.read(state_BSnD)
        out_BSD, cache, report = super().step(h_BSD, inputs, context, cache)
        if self.vector is not None:
            out_BSD = per_channel(jnp.add, [use(self.vector, out_BSD.dtype)], out_BSD)
        return self.connection.write(state_BSnD, ways, out_BSD), cache, report

    def read(self, state_BSnD: jax.Array) -> jax.Array:
        return self.ends.collapse(state_BSnD)


def build_core(config: Model, *, rngs: nnx.Rngs) -> Core:
    """Make the core that the config names."""
    match config.core:
        case SingleCore(streams=streams) as core:
            return Single(config, core, rngs=rngs) if streams is None else Streamed(config, core, streams, rngs=rngs)
        case TwoSpeedCore() as core:
            return TwoSpeed(config, core, rngs=rngs)
        case LatentFeedbackCore() as core:
            return LatentFeedback(config, core, rngs=rngs)
        case OwnCore() as own:
            return own.build(config, rngs=rngs)
