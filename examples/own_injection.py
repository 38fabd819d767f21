"""An injection of your own in a file of your own: every channel learns how much of the input a loop gets.

    looplm demo                                                       (makes the data)
    looplm train examples/own_injection.py --workdir runs/own
    PYTHONPATH=examples looplm eval runs/own --depths 1,2,4

A part is two classes. The config class holds the settings, is checked like any other (`--set
model.injection.initial_share=0.9`) and builds the module. Checkpoints name it, `own_injection:GatedInjection`, and hold
no code: commands that read them have to find this file, so its folder is on PYTHONPATH.
"""

import math
from collections.abc import Iterator
from typing import Annotated

import jax
from flax import nnx
from pydantic import Field

from looplm.config.load import load_config, override
from looplm.config.schema import Model, OwnInjection, Run
from looplm.model.injection import Injection
from looplm.model.layers import parameter
from looplm.sharding.collective import per_channel, use


class GatedInjection(OwnInjection):
    """Every loop starts from state + share * input, the share learned per channel."""

    initial_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Of the input, at initialisation."""

    def build(self, model: Model, *, rngs: nnx.Rngs) -> Injection:
        return Gated(model.dim, self.initial_share, rngs)

    def faults(self, run: Run) -> Iterator[str]:
        if run.loop.num_loops == 1:
            yield "loop.num_loops=1 enters the input once, where a share has little to say; use 2 or more"


class Gated(Injection):
    def __init__(self, dim: int, initial_share: float, rngs: nnx.Rngs):
        init = nnx.initializers.constant(math.log(initial_share / (1 - initial_share)))
        # The axes say how it is split over devices; what is elementwise has no weight decay and stays in float32.
        self.gate = parameter(rngs, init, (dim,), ("embed",), elementwise=True)

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        def mix(gate: jax.Array, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
            return state_BSD + jax.nn.sigmoid(gate) * input_BSD

        # per_channel: the gradient of a vector, summed over a batch that is split over devices.
        return per_channel(mix, [use(self.gate, state_BSD.dtype)], state_BSD, input_BSD)

    def parameter_metrics(self) -> dict[str, jax.Array]:
        """Logged at every step, beside the loss."""
        return {"loop/input_share": jax.nn.sigmoid(self.gate[...]).mean()}


def config() -> Run:
    return override(load_config("demo_cpu"), {"model.injection": GatedInjection()})
