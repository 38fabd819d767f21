"""LoRA: scale * (x A) B beside a projection x W (arXiv 2106.09685).

A model is built without adapters; `adapt` then hangs one on every projection that the config means, in whatever module
it is. An adapter multiplies activations and is not added to W before the loops: for that W would need a gradient of its
own size (docs/decisions.md, "Adapters").
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config import schema
from looplm.model.dropping import Drop
from looplm.model.init import uniform_within
from looplm.model.layers import Linear, parameter
from looplm.sharding.collective import lay_out, use
from looplm.sharding.rules import PARAMETER_AXES, activation_spec


class LoRA(nnx.Module):
    """What an adapter adds to one projection."""

    def __init__(self, linear: Linear, config: schema.LoRA, loops: int | None, *, runs_in_loops: bool, rngs: nnx.Rngs):
        """Make A and B for a projection, which may be stacked.

        Args:
            loops: how many of them have matrices of their own; None: all share them.
            runs_in_loops: whether the projection is part of the core.
        """
        self.config, self.out, self.runs_in_loops = config, linear.out, runs_in_loops
        self.x_letters, kernel, self.out_letters = _terms(linear.equation)
        inputs = [i for i, letter in enumerate(kernel) if letter not in self.out_letters]
        outputs = [i for i, letter in enumerate(kernel) if letter in self.out_letters]
        self.read, self.written = ("".join(kernel[i] for i in dims) for dims in (inputs, outputs))
        axes, shape = linear.kernel.axes, linear.kernel.get_value().shape
        stack, shape = shape[: len(shape) - len(axes)], shape[len(shape) - len(axes) :]
        self.is_stacked = bool(stack)
        read, written = (tuple(shape[i] for i in dims) for dims in (inputs, outputs))
        read_axes, written_axes = (tuple(axes[i] for i in dims) for dims in (inputs, outputs))
        he = uniform_within(math.sqrt(6 / math.prod(read)))
        self.a = parameter(rngs, he, (*stack, *read, config.rank), (*read_axes, "rank"), loops=loops)
        self.b = parameter(rngs, zeros, (*stack, config.rank, *written), ("rank", *written_axes), loops=loops)
        self.reads_split, self.writes_split = _is_split(read_axes), _is_split(written_axes)
        self.drop: Drop | None = None
        """What to leave out; set for one visit by `dropping`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return what is added to x W, laid out as it.

        A matrix that `tensor` does not split meets tokens that it does, so that every device of that axis has a part of
        its gradient.
        """
        whole, split = ("batch", self.out[1], "rank"), ("batch", "residual", "rank")
        if self.drop is not None:
            x = self.drop.entries(x, self.x_letters)
        if not self.reads_split and self.out[1] == "sequence":
            x = lay_out(x, "batch", "residual", "embed")
        low_BSr = jnp.einsum(
            f"{self.x_letters},{self.read}r->BSr",
            x,
            use(self.a, x.dtype),
            out_sharding=activation_spec(*(whole if self.reads_split else split)),
        )
        if self.drop is not None and self.runs_in_loops:
            low_BSr = self.drop.loops(low_BSr)
        low_BSr = lay_out(self.config.scale * low_BSr, *(whole if self.writes_split else split))
        out = self.out if self.writes_split else ("batch", "residual", *self.out[2:])
        added = jnp.einsum(
            f"BSr,r{self.written}->{self.out_letters}",
            low_BSr,
            use(self.b, x.dtype),
            out_sharding=activation_spec(*out),
        )
        return added if out == self.out else lay_out(added, *self.out)


def _terms(equation: str) -> tuple[str, str, str]:
    """Take apart: letters of x, of the kernel, of the output."""
    operands, out = equation.split("->")
    x, kernel = operands.split(",")
    return x, kernel, out


def _is_split(axes: tuple[str, ...]) -> bool:
    return any(PARAMETER_AXES[axis] == "tensor" for axis in axes)
