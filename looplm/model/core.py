"""The recurrence: how the input enters a loop, what the block is, how the state leaves.

Neither the driver (`loop.py`) nor the model (`lm.py`) looks into a state: another kind of recurrence is another core.
"""

from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import Model, OwnCore, SingleCore
from looplm.model.block import Stack
from looplm.model.cache import KVCache
from looplm.model.conditioning import build_conditioning
from looplm.model.context import Context
from looplm.model.injection import build_injection
from looplm.model.layers import build_norm, in_group
from looplm.model.report import Report
from looplm.model.state_init import initial_state

State = Any
"""A tree of arrays (B, S, ...)."""


class Inputs(NamedTuple):
    """What every loop gets alike."""

    entered_BSD: jax.Array
    """The prelude's output."""
    embedded_BSD: jax.Array
    """What entered the prelude."""
    tokens_BS: jax.Array
    values_nBSKH: jax.Array | None = None
    """Value embeddings of the block's layers that have one."""


class Core(Protocol):
    """A module."""

    def init_state(self, inputs: Inputs, context: Context) -> State:
        """Makes the first state."""

    def step(
        self, state: State, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[State, KVCache | None, Report]:
        """Runs one loop; `context.loop` says which. Gives a state of the structure, shapes and types that it gets."""

    def read(self, state: State) -> jax.Array:
        """Gives what gates, coda and head may look at, (B, S, D)."""

    def contraction(self) -> dict[str, jax.Array]:
        """Says what the parameters alone tell of how the state moves, by metric name."""


class Single(nnx.Module):
    """One stream: state -> inject(state, input) -> shared block -> norm, if there is one at the loop's end.

    What a caller gives every loop for itself is a memory: what every layer also sees, from before the sequence.
    """

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        self.config = config
        self.injection = in_group("injection", build_injection(config, rngs=rngs))
        self.conditioning = build_conditioning(config, rngs=rngs)
        self.block = Stack(config, "block", rngs=rngs)
        self.end_norm = build_norm(config, rngs=rngs) if config.norm_at_loop_end else None

    def init_state(self, inputs: Inputs, context: Context) -> jax.Array:
        return initial_state(
            self.config.state_init, input_BSD=inputs.entered_BSD, embedded_BSD=inputs.embedded_BSD, context=context
        )

    def step(
        self, state_BSD: jax.Array, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None, Report]:
        if self.config.residual_step == "inverse_loops":
            context = replace(context, residual_scale=1 / jnp.reshape(context.loop.total_B, (-1, 1, 1)))
        injected_BSD = self.injection(state_BSD, inputs.entered_BSD)
        if self.conditioning is not None:
            injected_BSD = self.conditioning(injected_BSD)
        memory_LBMD = context.loop.own
        x_BSD, cache, report = self.block(injected_BSD, context, cache, inputs.values_nBSKH, memory_LBMD)
        return (self.end_norm(x_BSD) if self.end_norm else x_BSD), cache, report

    def read(self, state_BSD: jax.Array) -> jax.Array:
        return state_BSD

    def contraction(self) -> dict[str, jax.Array]:
        return self.injection.contraction()


def build_core(config: Model, *, rngs: nnx.Rngs) -> Core:
    match config.core:
        case SingleCore():
            return Single(config, rngs=rngs)
        case OwnCore() as own:
            return own.build(config, rngs=rngs)
