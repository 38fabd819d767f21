"""Two states at two speeds (arXiv 2506.21734, 2510.04871):

    low  <- block(injection(low + high, input))      inner_loops times
    high <- block(high + low)                        once; with a block of its own, or the same

The inner loops run in the driver, as the outer ones do, so those without gradient are truly cut off. Every call of a
block has its own place in a cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import Model, TwoSpeedCore
from looplm.model.block import Stack
from looplm.model.cache import KVCache
from looplm.model.conditioning import build_conditioning
from looplm.model.context import Context
from looplm.model.damping import damped
from looplm.model.depth import Depth, Loop
from looplm.model.injection import build_injection
from looplm.model.inputs import Inputs
from looplm.model.layers import build_norm, in_group
from looplm.model.loop import run_loops
from looplm.model.report import Report
from looplm.model.state_init import first_vector, initial_state


class States(NamedTuple):
    """The state of the core."""

    high_BSD: jax.Array
    """The slow one, which is read."""
    low_BSD: jax.Array


class TwoSpeed(nnx.Module):
    """A core whose low state takes several steps for each of the high one."""

    def __init__(self, config: Model, core: TwoSpeedCore, *, rngs: nnx.Rngs):
        self.config, self.core = config, core
        self.injection = in_group("injection", build_injection(config, rngs=rngs))
        self.conditioning = build_conditioning(config, rngs=rngs)
        self.block, self.end_norm = Stack(config, "block", rngs=rngs), _end_norm(config, rngs)
        own = core.high_layers is not None
        of_high = config.model_copy(update={"block_layers": core.high_layers})
        self.high_block = Stack(of_high, "block", rngs=rngs) if own else None
        self.high_end_norm = _end_norm(config, rngs) if own else None
        self.first = first_vector(config.state_init, config.dim, rngs=rngs)
        self.low_first = first_vector(core.low_init, config.dim, rngs=rngs)

    def init_state(self, inputs: Inputs, context: Context) -> States:
        make = partial(initial_state, input_BSD=inputs.entered_BSD, embedded_BSD=inputs.embedded_BSD, context=context)
        return States(
            make(self.config.state_init, vector=self.first),
            make(self.core.low_init, vector=self.low_first, stream=1),
        )

    def step(
        self, state: States, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[States, KVCache | None, Report]:
        assert context.loop.own is None, "there is no memory of two states"
        low_BSD = state.low_BSD
        if self.core.inner_loops:
            low_BSD, cache = self._refined(state, inputs, context, cache)
        block, end_norm = self.block, self.end_norm
        if self.high_block is not None:
            block, end_norm = self.high_block, self.high_end_norm
        parts = self.conditioning, block, end_norm
        x_BSD = state.high_BSD + low_BSD
        high_BSD, cache, report = self._call(parts, state.high_BSD, x_BSD, context, cache, self.core.inner_loops)
        return States(high_BSD, low_BSD), cache, report

    def _refined(
        self, state: States, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        """Run the inner loops. Returns (the low state, cache)."""
        graph, parameters = nnx.split((self.injection, self.conditioning, self.block, self.end_norm))

        def refine(parameters: nnx.State, carry: tuple, given: tuple, loop: Loop) -> tuple[tuple, None]:
            (low_BSD, cache), (high_BSD, entered_BSD) = carry, given
            injection, *parts = nnx.merge(graph, parameters)
            x_BSD = injection(low_BSD + high_BSD, entered_BSD)
            low_BSD, cache, _ = self._call(parts, low_BSD, x_BSD, context, cache, loop.number_B[0])
            return (low_BSD, cache), None

        return run_loops(
            refine,
            parameters,
            (state.low_BSD, cache),
            (state.high_BSD, inputs.entered_BSD),
            self._depth(context, writes=cache is not None),
            remat="loop" if context.remat == "offload" else context.remat,
            unroll=context.unroll,
        ).carry

    def read(self, state: States) -> jax.Array:
        return state.high_BSD

    def parameter_metrics(self) -> dict[str, jax.Array]:
        return self.injection.parameter_metrics()

    def _call(
        self,
        parts: Sequence,
        old_BSD: jax.Array,
        x_BSD: jax.Array,
        context: Context,
        cache: KVCache | None,
        number: int | jax.Array,
    ) -> tuple[jax.Array, KVCache | None, Report]:
        """Run (conditioning, block, norm) as call `number` of the loop. Returns (the new state, cache, report)."""
        conditioning, block, end_norm = parts
        context = replace(context, loop=replace(context.loop, call=number))
        if conditioning:
            x_BSD, context = conditioning(x_BSD, context)
        x_BSD, cache, report = block(x_BSD, context, cache)
        new_BSD = end_norm(x_BSD) if end_norm else x_BSD
        return damped(self.core, old_BSD, new_BSD, context), cache, report

    def _depth(self, context: Context, *, writes: bool) -> Depth:
        """Say how many inner loops there are, and how many of them have a gradient; all count alike in writing, which
        has none."""
        count, trained, most = self.core.inner_loops, self.core.inner_backprop, context.inner_backprop
        if writes or (trained is None and most is None):
            return Depth(count)
        number: int | jax.Array
        if isinstance(trained, tuple):
            from_end = (context.loop.total_B - 1 - context.loop.number_B)[0]
            number = jnp.array((1, *trained))[jnp.maximum(len(trained) - from_end, 0)]
            mean, window = sum(trained) / len(trained), max(1, *trained)
        else:
            window = count if trained is None else trained
            number, mean = window, float(window)
        if most is None and not isinstance(trained, tuple):
            return Depth(window, num_detached=count - window)
        number = number if most is None else jnp.minimum(number, most)
        return Depth(window, number, count - number, expected=(mean, count - mean))


def _end_norm(config: Model, rngs: nnx.Rngs) -> nnx.Module | None:
    return build_norm(config, rngs=rngs) if config.norm_at_loop_end else None
