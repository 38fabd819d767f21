"""First values of all parameters: one table, read by the modules that declare them."""

import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant, normal, ones, zeros

from looplm.config.schema import ConcatInjection, Model


def initializers(config: Model) -> dict[str, Initializer]:
    """The initialiser of every role that a parameter can have."""
    return {
        "embedding": normal(config.init_std),
        "linear": normal(config.init_std),
        "residual_output": normal(config.init_std),
        "head": normal(config.init_std),
        "norm": ones,
        "injection": _injection(config),
        "gate": zeros,
        "gate_bias": constant(_gate_bias(config)),
    }


def _gate_bias(config: Model) -> float:
    """The logit of the exit probability that every loop starts with."""
    probability = config.exit_gate.initial_exit_probability if config.exit_gate else 0.5
    return math.log(probability / (1 - probability))


def _injection(config: Model) -> Initializer:
    """[state; input] -> D: random, or the identity on one of the halves."""
    injection = config.injection
    if not isinstance(injection, ConcatInjection) or injection.init == "random":
        return normal(config.init_std)
    passed = 0 if injection.init == "state" else 1

    def one_half(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        del key
        return jnp.zeros(shape, dtype).at[passed].set(jnp.eye(shape[1], shape[2], dtype=dtype))

    return one_half  # type: ignore[return-value]
