"""The placements of norms around x + f(x): how a branch f is normalised and added to the residual stream."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from looplm.config.schema import Model
from looplm.model.layers import build_norm

Branch = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
"""A branch of a layer: (what values and experts read, what everything else reads) -> (output, what else it returns)."""


class Recalled(NamedTuple):
    """What an attention reads of tokens before the sequence."""

    values_of_BMD: jax.Array
    """What values are made of."""
    keys_of_BMD: jax.Array
    """What keys are made of."""


class Pre(nnx.Module):
    """x + f(norm(x))."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs, over_places: bool = False):
        self.norm = build_norm(config, rngs=rngs, loops=config.norm_loops, over_places=over_places)

    def __call__(self, x_BSD: jax.Array, branch: Branch, scale: jax.Array | float) -> tuple[jax.Array, Any]:
        h_BSD = self.norm(x_BSD)
        out_BSD, more = branch(h_BSD, h_BSD)
        return x_BSD + scaled(out_BSD, scale), more

    def recalled(self, memory_BMD: jax.Array) -> Recalled:
        """Turn what entered the layer earlier into what its attention reads of it."""
        h_BMD = self.norm(memory_BMD)
        return Recalled(h_BMD, h_BMD)


class Sandwich(Pre):
    """x + norm(f(norm(x))): the second norm on the branch (arXiv 2510.25741)."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs, over_places: bool = False):
        super().__init__(config, rngs=rngs, over_places=over_places)
        self.out_norm = build_norm(config, rngs=rngs, loops=config.norm_loops, over_places=over_places)

    def __call__(self, x_BSD: jax.Array, branch: Branch, scale: jax.Array | float) -> tuple[jax.Array, Any]:
        h_BSD = self.norm(x_BSD)
        out_BSD, more = branch(h_BSD, h_BSD)
        return x_BSD + scaled(self.out_norm(out_BSD), scale), more


class SandwichSum(Sandwich):
    """norm(x + f(norm(x))): the second norm on the residual stream (arXiv 2502.05171)."""

    def __call__(self, x_BSD: jax.Array, branch: Branch, scale: jax.Array | float) -> tuple[jax.Array, Any]:
        h_BSD = self.norm(x_BSD)
        out_BSD, more = branch(h_BSD, h_BSD)
        return self.out_norm(x_BSD + scaled(out_BSD, scale)), more


class Post(Pre):
    """norm(x + f(x)): the norm on the residual stream, which the branch reads as it is (arXiv 1706.03762)."""

    def __call__(self, x_BSD: jax.Array, branch: Branch, scale: jax.Array | float) -> tuple[jax.Array, Any]:
        out_BSD, more = branch(x_BSD, x_BSD)
        return self.norm(x_BSD + scaled(out_BSD, scale)), more

    def recalled(self, memory_BMD: jax.Array) -> Recalled:
        return Recalled(memory_BMD, memory_BMD)


class Output(Pre):
    """x + norm(f(x)): the norm on the branch alone, which reads the residual stream as it is (arXiv 2501.00656)."""

    def __call__(self, x_BSD: jax.Array, branch: Branch, scale: jax.Array | float) -> tuple[jax.Array, Any]:
        out_BSD, more = branch(x_BSD, x_BSD)
        return x_BSD + scaled(self.norm(out_BSD), scale), more

    def recalled(self, memory_BMD: jax.Array) -> Recalled:
        return Recalled(memory_BMD, memory_BMD)


class Peri(Pre):
    """x + f(x), where values and experts read x, and queries, keys and routers read norm(x) (arXiv 2405.16039)."""

    def __call__(self, x_BSD: jax.Array, branch: Branch, scale: jax.Array | float) -> tuple[jax.Array, Any]:
        out_BSD, more = branch(x_BSD, self.norm(x_BSD))
        return x_BSD + scaled(out_BSD, scale), more

    def recalled(self, memory_BMD: jax.Array) -> Recalled:
        return Recalled(memory_BMD, self.norm(memory_BMD))


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
