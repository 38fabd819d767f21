"""How the input enters every loop."""

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import AddInjection, ConcatInjection, DiagonalInjection, Model, NoInjection
from looplm.model.init import initializers
from looplm.model.layers import Linear, parameter
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import per_channel, use


class Nothing(nnx.Module):
    """The input enters as the first state, or not at all."""

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return state_BSD


class Add(nnx.Module):
    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return state_BSD + input_BSD


class Concat(nnx.Module):
    """One linear map of [state; input] (arXiv 2502.05171); the kernel is kept as two (D, D) halves, [state, input]."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        D = config.dim
        self.linear = Linear(
            rngs, initializers(config)["concat"], "iBSD,iDE->BSE", (2, D, D), ("one", "embed", "embed_out"),
            ("batch", "residual", "embed"),
        )  # fmt: skip

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return self.linear(jnp.stack([state_BSD, input_BSD]))


class Diagonal(nnx.Module):
    """decay * state + dt * (input B), decay = exp(-dt exp(A)), dt = softplus(b), per channel (arXiv 2604.12946).

    The decay is below 1 whatever is learned, so the loop contracts; nothing here is weight-decayed.
    """

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        D, init = config.dim, initializers(config)
        self.input = Linear(
            rngs, init["diagonal_input"], "BSD,DE->BSE", (D, D), ("embed", "embed_out"),
            ("batch", "residual", "embed"), decays=False,
        )  # fmt: skip
        self.log_rate = parameter(rngs, init["diagonal_rate"], (D,), ("embed",), elementwise=True)
        self.step_bias = parameter(rngs, init["diagonal_step"], (D,), ("embed",), elementwise=True)

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        def mix(log_rate: jax.Array, step_bias: jax.Array, state_BSD: jax.Array, written_BSD: jax.Array) -> jax.Array:
            step = jax.nn.softplus(step_bias)
            decay = jnp.exp(-step * jnp.exp(log_rate))
            mixed_BSD = decay * at_least_fp32(state_BSD) + step * at_least_fp32(written_BSD)
            return mixed_BSD.astype(state_BSD.dtype)

        wide = jnp.promote_types(state_BSD.dtype, jnp.float32)
        vectors = [use(self.log_rate, wide), use(self.step_bias, wide)]
        return per_channel(mix, vectors, state_BSD, self.input(input_BSD))


def build_injection(config: Model, *, rngs: nnx.Rngs) -> Nothing | Add | Concat | Diagonal:
    match config.injection:
        case NoInjection():
            return Nothing()
        case AddInjection():
            return Add()
        case ConcatInjection():
            return Concat(config, rngs=rngs)
        case DiagonalInjection():
            return Diagonal(config, rngs=rngs)
