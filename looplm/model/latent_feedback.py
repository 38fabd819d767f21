"""Latent thoughts (Coconut, arXiv 2412.06769): at the places of one token the input is the state of the place before.

    x_0 = input                                      h_r = norm(block(x_r))              one pass over all tokens
    x_r = x_{r-1}, but at latent number r of a row   h_{r-1} of the place before         r = 1, 2, ...

A row of m latents is done after m + 1 loops, and loops beyond those give the same again, so rows with fewer latents may
stand beside it. Gradients flow through all states that were fed back. What follows a latent is computed in every pass
anew, where the authors' code goes on with keys and values of earlier passes, which are the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import LatentFeedbackCore, Model
from looplm.model.block import Stack
from looplm.model.cache import KVCache
from looplm.model.context import Context
from looplm.model.inputs import Inputs
from looplm.model.layers import build_norm
from looplm.model.report import Report


class Thinking(NamedTuple):
    """The state of the core."""

    input_BSD: jax.Array
    """What enters the block, with the latents that are filled so far."""
    hidden_BSD: jax.Array
    """What the block made of it, which is read and fed back."""


class LatentFeedback(nnx.Module):
    """A core whose loops fill the places of the latent token, one of every document a loop."""

    def __init__(self, config: Model, core: LatentFeedbackCore, *, rngs: nnx.Rngs):
        self.core = core
        self.block = Stack(config, "block", rngs=rngs)
        self.end_norm = build_norm(config, rngs=rngs) if config.norm_at_loop_end else None

    def init_state(self, inputs: Inputs, context: Context) -> Thinking:
        return Thinking(inputs.entered_BSD, inputs.entered_BSD)

    def step(
        self, state: Thinking, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[Thinking, KVCache | None, Report]:
        ranks_BS = latent_ranks(inputs.tokens_BS == self.core.token, context.positions_BS)
        due_BS = ranks_BS == context.loop.number_B[:, None]
        due_BS &= ranks_BS > 0
        before_BSD = jnp.pad(state.hidden_BSD[:, :-1], ((0, 0), (1, 0), (0, 0)))
        input_BSD = jnp.where(due_BS[..., None], before_BSD, state.input_BSD)
        x_BSD, cache, report = self.block(input_BSD, context, cache)
        return Thinking(input_BSD, self.end_norm(x_BSD) if self.end_norm else x_BSD), cache, report

    def read(self, state: Thinking) -> jax.Array:
        return state.hidden_BSD

    def parameter_metrics(self) -> dict[str, jax.Array]:
        return {}


def latent_ranks(is_latent_BS: jax.Array, positions_BS: jax.Array) -> jax.Array:
    """Return the number of every latent in its document, from 1, and 0 at other places: int32 (B, S). The first place
    of a document has none before it, and is no latent."""
    is_latent_BS = is_latent_BS & (positions_BS > 0)
    count_BS = jnp.cumsum(is_latent_BS, axis=1, dtype=jnp.int32)
    earlier_BS = jax.lax.cummax(jnp.where(positions_BS == 0, count_BS, 0), axis=1)
    return jnp.where(is_latent_BS, count_BS - earlier_BS, 0)
