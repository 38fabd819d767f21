"""First values: five rules for the matrices of a model, and the laws that they are made of.

A parameter that needs none of the rules (norms, biases, gates) has its first value where it is declared.
"""

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal, zeros

from looplm.config.schema import (
    DepthScaledInit,
    FanInInit,
    Model,
    NormalInit,
    OrthogonalInit,
    ZeroOutputInit,
)

ORTHOGONAL_STEPS = 40


@dataclass(frozen=True)
class Init:
    """What the matrices of a model start from; made once and handed to the modules."""

    matrix: Initializer
    """Of what has no rule of its own."""
    output: Initializer
    """Of what writes into the residual stream."""
    embedding: Initializer
    router: Initializer
    """Of the experts of a feed-forward."""
    head: Initializer
    head_bias: Initializer = zeros

    @classmethod
    def of(cls, config: Model) -> "Init":
        """Make the rules that the config names."""
        match config.init:
            case NormalInit(std=std):
                return cls.alike(normal(std))
            case ZeroOutputInit(std=std):
                return cls.alike(normal(std), output=zeros)
            case DepthScaledInit(effective_depth=depth):
                std = math.sqrt(2 / (5 * config.dim))
                return cls.alike(truncated_normal(std), output=truncated_normal(std / math.sqrt(2 * depth)))
            case OrthogonalInit():
                return cls.alike(orthogonal(math.sqrt(2 / (5 * config.dim))), output=zeros)
            case FanInInit(effective_depth=depth):
                scale, width = math.sqrt(2 / depth), 1 / math.sqrt(config.dim)
                matrix, within = normal(scale * width), uniform_within(width)  # torch.nn.Linear's default
                return cls(matrix, FanInNormal(scale), normal(width), same_length(matrix), within, within)

    @classmethod
    def alike(cls, matrix: Initializer, output: Initializer | None = None) -> "Init":
        """Make one rule for all matrices, but for those that write into the residual stream if `output` is given."""
        return cls(matrix, matrix if output is None else output, embedding=matrix, router=matrix, head=matrix)


def truncated_normal(std: float, cut: float = 3.0, *, corrected: bool = False) -> Initializer:
    """Make a normal law with standard deviation `std`, redrawn beyond `cut` of them.

    corrected: whether it is then widened, so that `std` is the standard deviation that is left (arXiv 2506.21734). At 3
    the cut narrows it by 1.3 %, which arXiv 2502.05171 leaves so.
    """
    left = math.sqrt(1 - 2 * cut * statistics.NormalDist().pdf(cut) / math.erf(cut / math.sqrt(2)))
    return jax.nn.initializers.truncated_normal(std / left if corrected else std, lower=-cut, upper=cut)


def orthogonal(std: float) -> Initializer:
    """Make rows or columns orthogonal, whichever are fewer, with entries of root mean square `std`.

    A kernel's first dim counts its inputs, all others its outputs. What is drawn is the orthogonal factor of a normal
    matrix, by Newton-Schulz: LAPACK's QR hangs on a CPU where a program has many.
    """

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32, out_sharding: None = None
    ) -> jax.Array:
        inputs, outputs = shape[0], math.prod(shape[1:])
        long, short = max(inputs, outputs), min(inputs, outputs)

        def iterate(_: int, x: jax.Array) -> jax.Array:
            return 1.5 * x - 0.5 * jnp.matmul(x, jnp.matmul(x.T, x, precision="highest"), precision="highest")

        # Singular values begin between about 1 / short and 1; each step makes small ones 1.5 times as large.
        start = jax.random.normal(key, (long, short), dtype) / (math.sqrt(long) + math.sqrt(short))
        x = std * math.sqrt(long) * jax.lax.fori_loop(0, ORTHOGONAL_STEPS, iterate, start)
        return (x if inputs >= outputs else x.T).reshape(shape)

    return draw  # type: ignore[return-value]


def identity(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Start a matrix as the identity."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


@dataclass(frozen=True)
class FanInNormal:
    """A normal law with standard deviation scale / sqrt(inputs); all dims but the last count inputs."""

    scale: float
    times: int = 1
    """How many matrices have their outputs added up: the inputs of all of them count."""

    def __call__(self, key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return self.scale / math.sqrt(self.times * math.prod(shape[:-1])) * jax.random.normal(key, shape, dtype)


def uniform_within(bound: float) -> Initializer:
    """Make a uniform law from -bound to bound."""

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32, out_sharding: None = None
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw  # type: ignore[return-value]


def same_length(matrix: Initializer) -> Initializer:
    """Scale the weights of every output to one length, the same for all, and keep the standard deviation."""

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32, out_sharding: None = None
    ) -> jax.Array:
        x = matrix(key, shape, dtype)
        unit = x / jnp.linalg.norm(x, axis=0, keepdims=True)
        return unit * (jnp.std(x) / jnp.std(unit))

    return draw  # type: ignore[return-value]


def of_each(matrix: Initializer, *, summed: bool = True) -> Initializer:
    """Draw every matrix of a leading dim (an expert's) by itself.

    summed: whether their outputs are added up, so that they count as one matrix with the inputs of all.
    """

    def draw(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32, out_sharding: None = None
    ) -> jax.Array:
        of_one = replace(matrix, times=shape[0]) if isinstance(matrix, FanInNormal) and summed else matrix
        return jax.vmap(lambda key: of_one(key, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return draw  # type: ignore[return-value]
