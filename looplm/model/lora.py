"""LoRA: scale * (x A) B beside a projection x W (arXiv 2106.09685).

A model is built without adapters; `adapt` then hangs one on every projection that the config means, in whatever module
it is. Every expert has a pair of its own. An adapter multiplies activations and is not added to W before the loops: for
that W would need a gradient of its own size (docs/decisions.md, "Adapters").
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros

from looplm.config import schema
from looplm.model.dropping import Drop
from looplm.model.init import uniform_within
from looplm.model.layers import Linear, parameter
from looplm.sharding.collective import lay_out, use
from looplm.sharding.rules import PARAMETER_AXES, activation_spec

OF_EXPERTS = ("experts", "head_experts")
"""Axes of dims along which every matrix has a pair of its own."""


class LoRA(nnx.Module):
    """What an adapter adds to one projection."""

    def __init__(self, linear: Linear, config: schema.LoRA, loops: int | None, *, runs_in_loops: bool, rngs: nnx.Rngs):
        """Make A and B for a projection, which may be stacked.

        Args:
            loops: how many of them have matrices of their own; None: all share them.
            runs_in_loops: whether the projection is part of the core.
        """
        self.config, self.out, self.runs_in_loops = config, linear.out, runs_in_loops
        self.x_letters, letters, self.out_letters = _terms(linear.equation)
        axes = linear.kernel.axes
        every = [i for i, axis in enumerate(axes) if axis in OF_EXPERTS]
        inputs = [i for i, letter in enumerate(letters) if letter not in self.out_letters and i not in every]
        outputs = [i for i, letter in enumerate(letters) if letter in self.out_letters and i not in every]
        self.every, self.read, self.written = ("".join(letters[i] for i in dims) for dims in (every, inputs, outputs))
        self.every_axes = tuple(axes[i] for i in every)
        self.is_stacked = linear.kernel.get_value().ndim > len(axes)
        self.a, self.b = pair(linear.kernel, every, inputs, outputs, config.rank, loops, rngs)
        self.reads_split, self.writes_split = (_is_split(tuple(axes[i] for i in dims)) for dims in (inputs, outputs))
        self.drop: Drop | None = None
        """What to leave out; set for one visit by `dropping`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return what is added to x W, laid out as it.

        A matrix that `tensor` does not split meets tokens that it does, so that every device of that axis has a part of
        its gradient.
        """
        whole, split = (("batch", sequence, *self.every_axes, "rank") for sequence in (self.out[1], "residual"))
        if self.drop is not None:
            x = self.drop.entries(x, self.x_letters)
        if not self.reads_split and self.out[1] == "sequence":
            x = lay_out(x, "batch", "residual", "embed")
        low = f"BS{self.every}r"
        low_BSr = jnp.einsum(
            f"{self.x_letters},{self.every}{self.read}r->{low}",
            x,
            use(self.a, x.dtype),
            out_sharding=activation_spec(*(whole if self.reads_split else split)),
        )
        if self.drop is not None and self.runs_in_loops:
            low_BSr = self.drop.loops(low_BSr)
        low_BSr = lay_out(self.config.scale * low_BSr, *(whole if self.writes_split else split))
        out = self.out if self.writes_split else ("batch", "residual", *self.out[2:])
        added = jnp.einsum(
            f"{low},{self.every}r{self.written}->{self.out_letters}",
            low_BSr,
            use(self.b, x.dtype),
            out_sharding=activation_spec(*out),
        )
        return added if out == self.out else lay_out(added, *self.out)


class ExpertLoRA(nnx.Module):
    """The pair of every expert beside one of its matrices."""

    def __init__(self, kernel: nnx.Param, config: schema.LoRA, loops: int | None, *, rngs: nnx.Rngs):
        """Make A (E, inputs, rank) and B (E, rank, outputs) for a kernel (E, inputs, outputs), which may be stacked."""
        self.a, self.b = pair(kernel, [0], [1], [2], config.rank, loops, rngs)


class ExpertLoRAs(nnx.Module):
    """What an adapter adds to the experts of a layer, by the names of their matrices."""

    def __init__(self, config: schema.LoRA):
        self.scale = config.scale

    def pair(self, name: str) -> list[nnx.Param]:
        """Return A and B beside a matrix; nothing where it has none."""
        lora = getattr(self, name, None)
        return [] if lora is None else [lora.a, lora.b]


def pair(
    kernel: nnx.Param,
    every: Sequence[int],
    inputs: Sequence[int],
    outputs: Sequence[int],
    rank: int,
    loops: int | None,
    rngs: nnx.Rngs,
) -> tuple[nnx.Param, nnx.Param]:
    """Declare A (stack, every, inputs, rank), after He, and B (stack, every, rank, outputs), zeros.

    Args:
        every, inputs, outputs: dims of the kernel, not counting a stack: those that both have (experts), that it
            reads, that it writes.
        loops: how many of them have matrices of their own; None: all share them.
    """
    axes, shape = kernel.axes, kernel.get_value().shape
    stack, shape = shape[: len(shape) - len(axes)], shape[len(shape) - len(axes) :]

    def of(values: Sequence, dims: Sequence[int]) -> tuple:
        return tuple(values[i] for i in dims)

    def made(first: Initializer, sizes: tuple[int, ...], names: tuple[str, ...]) -> nnx.Param:
        sizes, names = (*stack, *of(shape, every), *sizes), (*of(axes, every), *names)
        return parameter(rngs, first, sizes, names, loops=loops, used=kernel.used)

    he = uniform_within(math.sqrt(6 / math.prod(of(shape, inputs))))
    a = made(he, (*of(shape, inputs), rank), (*of(axes, inputs), "rank"))
    return a, made(zeros, (rank, *of(shape, outputs)), ("rank", *of(axes, outputs)))


def _terms(equation: str) -> tuple[str, str, str]:
    """Take apart: letters of x, of the kernel, of the output."""
    operands, out = equation.split("->")
    x, kernel = operands.split(",")
    return x, kernel, out


def _is_split(axes: tuple[str, ...]) -> bool:
    return any(PARAMETER_AXES[axis] == "tensor" for axis in axes)
