"""The placements of norms around x + f(x): how a branch f is normalised and added to the residual stream.

With several residual streams, (B, S, n, D) (`streams.py`), a branch gets what is read of them, the sum is what is
written to all, and a norm on the sum is one on every stream.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from looplm.config.schema import Model
from looplm.model.layers import build_norm
from looplm.model.modulation import build_modulation
from looplm.model.streams import build_connection

Branch = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
"""A branch of a layer: (what values and experts read, what everything else reads) -> (output, what else it returns)."""


class Recalled(NamedTuple):
    """What a branch reads: of its tokens, or an attention of tokens before the sequence."""

    values_of_BMD: jax.Array
    """What values, and experts, are made of."""
    keys_of_BMD: jax.Array
    """What everything else is made of."""

    def times(self, scale_B1D: jax.Array) -> "Recalled":
        """Multiply both with vectors of the sequences; they stay one array where they are one."""
        values_of_BMD = self.values_of_BMD * scale_B1D
        same = self.keys_of_BMD is self.values_of_BMD
        return Recalled(values_of_BMD, values_of_BMD if same else self.keys_of_BMD * scale_B1D)


class Pre(nnx.Module):
    """x + f(norm(x))."""

    def __init__(self, config: Model, number: int | jax.Array = 0, *, rngs: nnx.Rngs, over_places: bool = False):
        """Make the norm. number: that of the branch in a stack of layers, int32."""
        self.modulation = build_modulation(config, rngs=rngs)
        # A modulated branch has its scale from the modulation.
        of_norm = config if self.modulation is None else config.model_copy(update={"norm": "unit"})
        self.norm = build_norm(of_norm, rngs=rngs, loops=config.norm_loops, over_places=over_places)
        self.connection = build_connection(config, number, rngs=rngs)

    def __call__(
        self, x: jax.Array, branch: Branch, scale: jax.Array | float, condition_BD: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Return (the residual stream, or all streams, after the branch, what else the branch returns).

        scale: what the branch gives is multiplied with.
        condition_BD: what the branch is modulated by, where it is.
        """
        gate: jax.Array | float = 1.0
        x_BSD, ways = self.connection.read(x)
        read = self.recalled(x_BSD)
        if self.modulation is not None:
            assert condition_BD is not None, "the conditioning gives one"
            of_read_B1D, gate = self.modulation(condition_BD)
            read = read.times(of_read_B1D)
        out_BSD, more = branch(*read)
        given_BSD = scaled(scaled(self.given(out_BSD), scale), gate)
        return self.summed(self.connection.write(x, ways, given_BSD)), more

    def recalled(self, x_BMD: jax.Array) -> Recalled:
        """Turn what enters the layer, or entered it earlier, into what the branch reads of it."""
        h_BMD = self.norm(x_BMD)
        return Recalled(h_BMD, h_BMD)

    def given(self, out_BSD: jax.Array) -> jax.Array:
        """Turn what the branch gives into what is added."""
        return out_BSD

    def summed(self, x: jax.Array) -> jax.Array:
        """Turn the sum into what goes on."""
        return x


class Sandwich(Pre):
    """x + norm(f(norm(x))): the second norm on the branch (arXiv 2510.25741)."""

    def __init__(self, config: Model, number: int | jax.Array = 0, *, rngs: nnx.Rngs, over_places: bool = False):
        super().__init__(config, number, rngs=rngs, over_places=over_places)
        self.out_norm = build_norm(config, rngs=rngs, loops=config.norm_loops, over_places=over_places)

    def given(self, out_BSD: jax.Array) -> jax.Array:
        return self.out_norm(out_BSD)


class SandwichSum(Sandwich):
    """norm(x + f(norm(x))): the second norm on the residual stream (arXiv 2502.05171)."""

    def given(self, out_BSD: jax.Array) -> jax.Array:
        return out_BSD

    def summed(self, x: jax.Array) -> jax.Array:
        return self.out_norm(x)


class Post(Pre):
    """norm(x + f(x)): the norm on the residual stream, which the branch reads as it is (arXiv 1706.03762)."""

    def recalled(self, x_BMD: jax.Array) -> Recalled:
        return Recalled(x_BMD, x_BMD)

    def summed(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


class Output(Pre):
    """x + norm(f(x)): the norm on the branch alone, which reads the residual stream as it is (arXiv 2501.00656)."""

    def recalled(self, x_BMD: jax.Array) -> Recalled:
        return Recalled(x_BMD, x_BMD)

    def given(self, out_BSD: jax.Array) -> jax.Array:
        return self.norm(out_BSD)


class Peri(Pre):
    """x + f(x), where values and experts read x, and queries, keys and routers read norm(x) (arXiv 2405.16039)."""

    def recalled(self, x_BMD: jax.Array) -> Recalled:
        return Recalled(x_BMD, self.norm(x_BMD))


def scaled(out_BSD: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Multiply in out's type; a scale of 1.0 adds no operation."""
    if isinstance(scale, float) and scale == 1.0:
        return out_BSD
    return out_BSD * jax.numpy.asarray(scale, out_BSD.dtype)


PLACEMENTS: dict[str, type[Pre]] = {
    "pre": Pre,
    "sandwich": Sandwich,
    "sandwich_sum": SandwichSum,
    "peri": Peri,
    "post": Post,
    "output": Output,
}
