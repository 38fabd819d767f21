"""Injections: how the input enters every loop."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, constant, zeros

from looplm.config.schema import (
    AddInjection,
    ConcatInjection,
    DiagonalInjection,
    GateInjection,
    Model,
    NoInjection,
    OwnInjection,
)
from looplm.model.init import Init, identity
from looplm.model.layers import Linear, parameter
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import per_channel, use


class Injection(nnx.Module):
    """How the input enters a loop."""

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        """Return what the shared block gets, (B, S, D), in the state's type. input_BSD: the prelude's output."""
        raise NotImplementedError("one of the subclasses")

    def parameter_metrics(self) -> dict[str, jax.Array]:
        """Return metrics that follow from the parameters alone, by name, such as the share of the state that a loop
        keeps."""
        return {}


class Nothing(Injection):
    """The input enters as the first state, or not at all."""

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return state_BSD


class Add(Injection):
    """state + input."""

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return state_BSD + input_BSD


class Concat(Injection):
    """One linear map of [state; input] (arXiv 2502.05171); the kernel is kept as two (D, D) halves, [state, input]."""

    def __init__(self, config: Model, kind: ConcatInjection, *, rngs: nnx.Rngs):
        D, init = config.dim, Init.of(config).matrix if kind.init == "random" else one_half(kind.init)
        self.linear = Linear(
            rngs, init, "iBSD,iDE->BSE", (2, D, D), ("one", "embed", "embed_out"), ("batch", "residual", "embed")
        )
        self.bias = parameter(rngs, zeros, (D,), ("embed",), elementwise=True) if kind.bias else None

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        mixed_BSD = self.linear(jnp.stack([state_BSD, input_BSD]))
        if self.bias is None:
            return mixed_BSD
        return per_channel(jnp.add, [use(self.bias, mixed_BSD.dtype)], mixed_BSD)


class Diagonal(Injection):
    """decay * state + dt * (input B), decay = exp(-dt exp(A)), dt = softplus(b), per channel (arXiv 2604.12946).

    The decay is below 1 whatever is learned, so the loop contracts; nothing here is weight-decayed.
    """

    def __init__(self, D: int, kind: DiagonalInjection, *, rngs: nnx.Rngs):
        self.input = Linear(
            rngs, identity, "BSD,DE->BSE", (D, D), ("embed", "embed_out"), ("batch", "residual", "embed"), decays=False
        )
        # exp(-softplus(b)) is the initial decay, the rate being exp(0).
        step_bias = constant(math.log(math.expm1(-math.log(kind.initial_decay))))
        self.log_rate = parameter(rngs, zeros, (D,), ("embed",), elementwise=True)
        self.step_bias = parameter(rngs, step_bias, (D,), ("embed",), elementwise=True)

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        def mix(log_rate: jax.Array, step_bias: jax.Array, state_BSD: jax.Array, written_BSD: jax.Array) -> jax.Array:
            step = jax.nn.softplus(step_bias)
            mixed_BSD = decay(step, log_rate) * at_least_fp32(state_BSD) + step * at_least_fp32(written_BSD)
            return mixed_BSD.astype(state_BSD.dtype)

        wide = jnp.promote_types(state_BSD.dtype, jnp.float32)
        vectors = [use(self.log_rate, wide), use(self.step_bias, wide)]
        return per_channel(mix, vectors, state_BSD, self.input(input_BSD))

    def parameter_metrics(self) -> dict[str, jax.Array]:
        decay_D = decay(jax.nn.softplus(self.step_bias[...]), self.log_rate[...])
        return {"loop/decay_mean": jnp.mean(decay_D), "loop/decay_max": jnp.max(decay_D)}


class Gate(Injection):
    """input + keep * (state - input), keep = sigmoid(b) per channel; it has no weight decay.

    Written so, the first loop of a state that starts as the input gets the input to the bit, whatever is kept.
    """

    def __init__(self, D: int, kind: GateInjection, *, rngs: nnx.Rngs):
        init = constant(math.log(kind.initial_keep / (1 - kind.initial_keep)))
        self.keep = parameter(rngs, init, (D,), ("embed",), elementwise=True)

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        def mix(keep: jax.Array, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
            wide_BSD = at_least_fp32(input_BSD)
            mixed_BSD = wide_BSD + jax.nn.sigmoid(keep) * (at_least_fp32(state_BSD) - wide_BSD)
            return mixed_BSD.astype(state_BSD.dtype)

        keep = use(self.keep, jnp.promote_types(state_BSD.dtype, jnp.float32))
        return per_channel(mix, [keep], state_BSD, input_BSD)

    def parameter_metrics(self) -> dict[str, jax.Array]:
        keep_D = jax.nn.sigmoid(self.keep[...])
        return {"loop/keep_mean": jnp.mean(keep_D), "loop/keep_max": jnp.max(keep_D)}


def decay(step_D: jax.Array, log_rate_D: jax.Array) -> jax.Array:
    """Return the share of the state that a loop keeps, per channel."""
    return jnp.exp(-step_D * jnp.exp(log_rate_D))


def one_half(passed: Literal["state", "input"]) -> Initializer:
    """Start the map of [state; input], (2, D, D), as the identity on one of its halves."""

    def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        half = 0 if passed == "state" else 1
        return jnp.zeros(shape, dtype).at[half].set(identity(key, shape[1:], dtype))

    return draw


def build_injection(config: Model, *, rngs: nnx.Rngs) -> Injection:
    """Make the injection that the config names."""
    match config.injection:
        case NoInjection():
            return Nothing()
        case AddInjection():
            return Add()
        case ConcatInjection() as kind:
            return Concat(config, kind, rngs=rngs)
        case DiagonalInjection() as kind:
            return Diagonal(config.dim, kind, rngs=rngs)
        case GateInjection() as kind:
            return Gate(config.dim, kind, rngs=rngs)
        case OwnInjection() as own:
            return own.build(config, rngs=rngs)
