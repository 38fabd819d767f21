"""The recurrence of a language model: how the input enters, what the block is, how the state leaves a loop.

The driver (`loop.py`) knows none of this; another kind of recurrence is another core.
"""

import jax
from flax import nnx

from looplm.config.schema import Model
from looplm.model.block import Stack
from looplm.model.context import Context, KeysValues
from looplm.model.injection import build_injection
from looplm.model.layers import build_norm
from looplm.model.routing import Routed


class Core(nnx.Module):
    """state -> inject(state, input) -> shared block -> norm, if there is one at the loop's end."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        self.injection = build_injection(config, rngs=rngs)
        self.block = Stack(config, "block", rngs=rngs)
        self.end_norm = build_norm(config, rngs=rngs) if config.norm_at_loop_end else None

    def step(
        self,
        state_BSD: jax.Array,
        input_BSD: jax.Array,
        context: Context,
        cache: KeysValues | None,
        embedded_nBSKH: jax.Array | None = None,
        before: Routed | None = None,
    ) -> tuple[jax.Array, KeysValues | None, Routed]:
        """One loop.

        cache: (keys, values) of this loop, each (L, B, T, K, H), or None.
        before: what the routers did in the loop before.
        """
        x_BSD, cache, routed = self.block(self.injection(state_BSD, input_BSD), context, cache, embedded_nBSKH, before)
        return (self.end_norm(x_BSD) if self.end_norm else x_BSD), cache, routed
