"""Gates: of tokens, with the distribution over loops that it defines (arXiv 2510.25741), and of whole sequences."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, constant, zeros

from looplm.config import schema
from looplm.model.layers import parameter
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import gather_sequence, per_channel, use
from looplm.sharding.rules import activation_spec


class Units(nnx.Module):
    """Linear units per token: K logits of what `Core.read` gives of a state."""

    def __init__(
        self,
        dim: int,
        count: int,
        init: Initializer,
        *,
        bias: float | None = None,
        loops: int | None = None,
        rngs: nnx.Rngs,
    ):
        """bias: its first value; None for none. loops: how many loops have units of their own."""
        self.kernel = parameter(rngs, init, (dim, count), ("embed", "one"), wide=True, loops=loops)
        self.bias = None if bias is None else parameter(rngs, constant(bias), (count,), ("one",), elementwise=True)

    def __call__(self, h_BSD: jax.Array) -> jax.Array:
        """Return logits (B, S, K), float32 at least."""
        h_BSD = at_least_fp32(h_BSD)
        kernel_DK, spec = use(self.kernel, h_BSD.dtype), activation_spec("batch", "residual", "one")
        logits_BSK = jnp.einsum("BSD,DK->BSK", h_BSD, kernel_DK, out_sharding=spec)
        return logits_BSK if self.bias is None else per_channel(jnp.add, [use(self.bias, h_BSD.dtype)], logits_BSK)


class ExitGate(Units):
    """logit(lambda) = w . h + b for every token; lambda is the probability of leaving, given one is still in."""

    def __init__(self, dim: int, kind: schema.ExitGate, *, rngs: nnx.Rngs):
        p = kind.initial_exit_probability
        super().__init__(dim, 1, zeros, bias=math.log(p / (1 - p)), rngs=rngs)

    def __call__(self, hidden_BSD: jax.Array) -> jax.Array:
        """Return logits (B, S), float32 at least."""
        return super().__call__(hidden_BSD)[..., 0]


class SequenceGate(nnx.Module):
    """Logits for a whole sequence: w . pooled(h) + b."""

    def __init__(self, dim: int, kind: schema.SequenceGate, *, rngs: nnx.Rngs):
        self.pool = kind.pool
        self.kernel = parameter(rngs, zeros, (dim, kind.outputs), ("embed", "one"), wide=True)
        self.bias = parameter(rngs, constant(kind.initial_bias), (kind.outputs,), ("one",), elementwise=True)

    def __call__(self, h_BSD: jax.Array, counted_BS: jax.Array | None) -> jax.Array:
        """Return logits (B, Q), float32 at least.

        Args:
            h_BSD: what `Core.read` gives of a state, with the places in front of the tokens.
            counted_BS: False for padding; None where there is none.
        """
        pooled_BD = self._pooled(gather_sequence(at_least_fp32(h_BSD)), counted_BS)
        kernel_DQ = use(self.kernel, pooled_BD.dtype)
        logits_BQ = jnp.einsum("BD,DQ->BQ", pooled_BD, kernel_DQ, out_sharding=activation_spec("batch", "one"))
        return per_channel(jnp.add, [use(self.bias, pooled_BD.dtype)], logits_BQ)

    def _pooled(self, h_BSD: jax.Array, counted_BS: jax.Array | None) -> jax.Array:
        if self.pool == "first":
            return h_BSD[:, 0]
        if counted_BS is None:
            return h_BSD[:, -1] if self.pool == "last" else jnp.mean(h_BSD, axis=1)
        weight_BS = counted_BS.astype(h_BSD.dtype)
        if self.pool == "last":
            later_BS = jnp.cumsum(weight_BS[:, ::-1], axis=1)[:, ::-1]
            weight_BS = weight_BS * (later_BS == 1)
        total_B1 = jnp.maximum(jnp.sum(weight_BS, axis=1, keepdims=True), 1)
        return jnp.sum(h_BSD * (weight_BS / total_B1)[..., None], axis=1)


def log_exit_distribution(gate_logits_RBS: jax.Array, active_RB: jax.Array | None = None) -> jax.Array:
    """Return the log of p_t = lambda_t prod_{j<t} (1 - lambda_j), to leave after loop t; the last loop takes the rest.

    Args:
        gate_logits_RBS: float32.
        active_RB: (R, 1) or (R, B), False for loops that did not run (fewer loops than the window): p = 0,
            log p = -inf. The last one is always active.

    Returns:
        (R, B, S) float32; exp of it sums to 1 over R. In log space, since a product of many (1 - lambda) underflows.
    """
    log_leave_RBS = jax.nn.log_sigmoid(gate_logits_RBS).at[-1].set(0.0)
    log_stay_RBS = jax.nn.log_sigmoid(-gate_logits_RBS)
    if active_RB is not None:
        log_leave_RBS = jnp.where(active_RB[:, :, None], log_leave_RBS, -jnp.inf)
        log_stay_RBS = jnp.where(active_RB[:, :, None], log_stay_RBS, 0.0)
    log_survive_RBS = jnp.cumsum(log_stay_RBS, axis=0) - log_stay_RBS
    return log_leave_RBS + log_survive_RBS


def exit_loop(exit_RBS: jax.Array, threshold: float) -> jax.Array:
    """Return the first loop (1..R) at which the cumulative exit probability reaches the threshold, at the latest R:
    (B, S) int32."""
    reached_RBS = (jnp.cumsum(exit_RBS, axis=0) >= threshold).at[-1].set(True)
    return jnp.argmax(reached_RBS, axis=0) + 1
