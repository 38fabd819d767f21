"""What a call of a loaded model gives: states, exits and routers of every loop, and logits of any of them."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from looplm.errors import UserError
from looplm.model.core import State
from looplm.ops.softcap import softcap


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Result:
    """What a call of the model gives; R counts the loops after the detached ones. All float32 but the state."""

    hidden_RBSD: jax.Array
    """What the head reads after each of these loops."""
    state: State
    """The state after the last loop, in the compute type: (B, S, D), or a tree of such arrays; with the places that the
    model has in front of the tokens."""
    sequence_gate_BQ: jax.Array | None
    """Logits of its sequence gate: halt and, if there is a second, go on. None without such a gate."""
    gate_logits_RBS: jax.Array | None
    """None without a gate."""
    exit_RBS: jax.Array | None
    """Exit distribution over these loops; sums to 1. None without a gate."""
    router_logits_RLBSE: jax.Array | None
    """What the routers of the block's layers with experts gave in each of these loops; None without such layers."""
    attention_logits_RLBSE: jax.Array | None
    """What those of the block's attentions gave: experts of all heads one after the other, those of the values first;
    None without such."""
    head_VD: jax.Array
    """The head, which makes logits of hidden states when they are asked for."""
    head_bias_V: jax.Array | None
    """Its bias; None without one."""
    num_detached: int = field(metadata={"static": True})
    """Loops that ran before those that are here."""
    logit_softcap: float | None = field(metadata={"static": True})
    """c of c * tanh(logits / c); None means no cap."""

    def logits(self, depth: int) -> jax.Array:
        """(B, S, V) after `depth` loops, num_detached < depth <= num_loops. Raises UserError outside of that."""
        first, last = self.num_detached + 1, self.num_detached + self.hidden_RBSD.shape[0]
        if not first <= depth <= last:
            raise UserError(f"depth={depth} was not computed; this result holds {first} to {last}")
        return softcap(self._logits(self.hidden_RBSD[depth - 1 - self.num_detached]), self.logit_softcap)

    def expected_logits(self) -> jax.Array:
        """(B, S, V): the logits of all loops weighted by the exit distribution."""
        if self.exit_RBS is None:
            raise UserError("expected_logits needs an exit gate, and this model has none; use logits(depth)")
        if self.logit_softcap is not None:
            depths = enumerate(self.exit_RBS, start=self.num_detached + 1)
            return sum((exit_BS[:, :, None] * self.logits(depth) for depth, exit_BS in depths), start=jnp.zeros(()))
        # The head is affine, and the weights sum to 1: weigh the hidden states and apply it once.
        mixed_BSD = jnp.einsum("RBS,RBSD->BSD", self.exit_RBS, self.hidden_RBSD)
        return self._logits(mixed_BSD)

    def _logits(self, hidden_BSD: jax.Array) -> jax.Array:
        logits_BSV = jnp.einsum("BSD,VD->BSV", hidden_BSD, self.head_VD)
        return logits_BSV if self.head_bias_V is None else logits_BSV + self.head_bias_V
