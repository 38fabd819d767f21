"""The gated feed-forward (arXiv 2002.05202)."""

import jax
from flax import nnx

from looplm.config.schema import Model
from looplm.model.init import initializers
from looplm.model.layers import Linear


class SwiGLU(nnx.Module):
    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        D, F = config.dim, config.hidden_dim
        init = initializers(config)
        wide, narrow = ("batch", "sequence", "hidden"), ("batch", "sequence", "embed")
        self.gate = Linear(rngs, init["linear"], "BSD,DF->BSF", (D, F), ("embed", "hidden"), wide)
        self.up = Linear(rngs, init["linear"], "BSD,DF->BSF", (D, F), ("embed", "hidden"), wide)
        self.down = Linear(rngs, init["residual_output"], "BSF,FD->BSD", (F, D), ("hidden", "embed"), narrow)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BSD)) * self.up(x_BSD))
