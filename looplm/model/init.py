"""First values of all parameters: one table, read by the modules that declare them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant, normal, ones, variance_scaling, zeros

from looplm.config.schema import (
    ConcatInjection,
    DepthScaledInit,
    DiagonalInjection,
    FanInInit,
    Model,
    NormalInit,
    OrthogonalInit,
    ZeroOutputInit,
)

ORTHOGONAL_STEPS = 40


def initializers(config: Model) -> dict[str, Any]:
    """Return the initialiser, (key, shape, dtype) -> array, of every role that a parameter can have."""
    own: dict[str, Any] = {}
    match config.init:
        case NormalInit(std=std):
            matrix = output = normal(std)
        case ZeroOutputInit(std=std):
            matrix, output = normal(std), zeros
        case DepthScaledInit(effective_depth=depth):
            std = math.sqrt(2 / (5 * config.dim))
            matrix, output = truncated_normal(std), truncated_normal(std / math.sqrt(2 * depth))
        case OrthogonalInit():
            matrix, output = orthogonal(math.sqrt(2 / (5 * config.dim))), zeros
        case FanInInit(effective_depth=depth):
            scale, width = math.sqrt(2 / depth), 1 / math.sqrt(config.dim)
            matrix, output = normal(scale * width), FanInNormal(scale)
            within = uniform_within(width)  # the default of torch.nn.Linear
            rows = same_length(matrix)
            own = {"embedding": normal(width), "router": rows, "head": within, "head_bias": within}
    return {
        "embedding": matrix,
        "linear": matrix,
        "residual_output": output,
        "head": matrix,
        "router": matrix,
        "head_router": matrix,
        "router_bias": zeros,
        "norm": ones,
        "norm_bias": zeros,
        "head_bias": zeros,
        "attention_bias": zeros,
        "loop_vector": zeros,
        "value_embedding": normal(1.0),
        "value_gate": variance_scaling(1 / 3, "fan_in", "uniform"),  # within 1 / sqrt(channels)
        "read_out": identity if config.read_out and config.read_out.init == "identity" else matrix,
        "concat": _concat(config, matrix),
        "concat_bias": zeros,
        "diagonal_input": identity,
        "diagonal_rate": zeros,
        "diagonal_step": constant(_diagonal_step(config)),
        "gate": zeros,
        "gate_bias": constant(_gate_bias(config)),
    } | own


def truncated_normal(std: float) -> Initializer:
    """Make a normal law with standard deviation `std`, redrawn beyond three of them. The cut narrows it by 1.3 %, which
    is left so, as in arXiv 2502.05171."""
    return jax.nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)


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


def identity(
    key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32, out_sharding: None = None
) -> jax.Array:
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


def _concat(config: Model, matrix: Initializer) -> Initializer:
    """Start the map of [state; input], (2, D, D), at random, or as the identity on one of its halves."""
    injection = config.injection
    if not isinstance(injection, ConcatInjection) or injection.init == "random":
        return matrix
    passed = 0 if injection.init == "state" else 1

    def one_half(
        key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32, out_sharding: None = None
    ) -> jax.Array:
        return jnp.zeros(shape, dtype).at[passed].set(identity(key, shape[1:], dtype))

    return one_half  # type: ignore[return-value]


def _gate_bias(config: Model) -> float:
    """Return the logit of the exit probability that every loop starts with."""
    probability = config.exit_gate.initial_exit_probability if config.exit_gate else 0.5
    return math.log(probability / (1 - probability))


def _diagonal_step(config: Model) -> float:
    """Return b such that exp(-softplus(b)) is the initial decay, the rate being exp(0)."""
    decay = config.injection.initial_decay if isinstance(config.injection, DiagonalInjection) else 0.5
    return math.log(math.expm1(-math.log(decay)))
