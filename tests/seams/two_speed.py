"""Two states at two speeds (HRM, arXiv 2506.21734; TRM, arXiv 2510.04871), as a core.

low  <- block(low + high + input)      inner_loops times, the last inner_backprop of them with gradient
high <- block(high + low)              once; with a block of its own, or the same
"""

from typing import NamedTuple

import jax
from flax import nnx

from looplm.config.schema import Model
from looplm.model.block import Stack
from looplm.model.depth import Depth
from looplm.model.layers import parameter
from looplm.model.loop import run_loops


class States(NamedTuple):
    high_BSD: jax.Array
    low_BSD: jax.Array


class TwoSpeed(nnx.Module):
    def __init__(
        self, config: Model, inner_loops: int, inner_backprop: int, high_layers: int | None, *, rngs: nnx.Rngs
    ):
        self.depth = Depth(inner_backprop, num_detached=inner_loops - inner_backprop)
        self.low = Stack(config, "block", rngs=rngs)
        high = config.model_copy(update={"block_layers": high_layers})
        self.high = Stack(high, "block", rngs=rngs) if high_layers else None
        self.first = parameter(rngs, nnx.initializers.truncated_normal(1.0), (2, config.dim), ("one", "embed"))

    def init_state(self, inputs, context):
        return States(*(first_D + 0 * inputs.entered_BSD for first_D in self.first.get_value()))

    def step(self, state, inputs, context, cache):
        graph, parameters = nnx.split(self.low)

        def refine(parameters, low_BSD, given_BSD, loop):
            return nnx.merge(graph, parameters)(low_BSD + given_BSD, context)[0], None

        given_BSD = state.high_BSD + inputs.entered_BSD
        low_BSD = run_loops(refine, parameters, state.low_BSD, given_BSD, self.depth).carry
        high_BSD, _, report = (self.high or self.low)(state.high_BSD + low_BSD, context)
        return States(high_BSD, low_BSD), cache, report

    def read(self, state):
        return state.high_BSD
