"""Modulation: a condition scales what a branch reads and weighs what it adds (arXiv 2212.09748, adaLN-Zero)."""

import jax
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import Model, TrajectoryConditioning
from looplm.model.convolution import biased
from looplm.model.init import Init
from looplm.model.layers import Linear, parameter


class Modulation(nnx.Module):
    """silu(c) W + b: two vectors of a branch, a scale that is added to 1 and a gate."""

    def __init__(self, config: Model, kind: TrajectoryConditioning, *, rngs: nnx.Rngs):
        D, first = config.dim, zeros if kind.starts_at_zero else Init.of(config).matrix
        axes, out = ("embed", "one", "embed_out"), ("batch", "one", "embed")
        self.map = Linear(rngs, first, "BD,DnE->BnE", (D, 2, D), axes, out)
        self.bias = parameter(rngs, zeros, (2, D), ("one", "embed"), elementwise=True)

    def __call__(self, condition_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (what is multiplied with what the branch reads, with what it adds), each (B, 1, D)."""
        vectors_B2D = biased(self.map(jax.nn.silu(condition_BD)), self.bias)
        return 1 + vectors_B2D[:, :1], vectors_B2D[:, 1:]


def build_modulation(config: Model, *, rngs: nnx.Rngs) -> Modulation | None:
    """Make the modulation of a branch, if the config's conditioning has any."""
    kind = config.conditioning
    return Modulation(config, kind, rngs=rngs) if isinstance(kind, TrajectoryConditioning) else None
