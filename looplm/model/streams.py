"""Hyper-connections: n residual streams, of which a branch reads a mixture (arXiv 2409.19606, 2512.24880, 2604.21254).

    x_0 = copies                                          (B, S, n, D)
    h   = sum_j read_j x_j                                what the branch gets
    x_k = sum_j mix_jk x_j + write_k branch(h)
    out = mean, sum or weighted sum of the streams

The three weights of a token follow from its logits: learned biases, and what is made of the token. They are bounded
where they are used. All of it is computed on each device for its own tokens.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, constant, ones, zeros

from looplm.config.schema import DiagonalMix, FreeMix, IdentityMix, Model, SinkhornMix, Streams
from looplm.model.init import Init
from looplm.model.layers import parameter
from looplm.ops.norm import rms_norm
from looplm.ops.precision import at_least_fp32
from looplm.ops.sinkhorn import sinkhorn
from looplm.sharding.collective import on_each_device, use, vary_whole
from looplm.sharding.rules import activation_spec, splitting

CHOSEN = 4.0
"""Logit of the stream that is read at first, where weights are bounded; that of the others is its negative."""


class Logits(NamedTuple):
    """Of the weights, float32 at least: of every token (B, S, ...), or the same for all."""

    read_n: jax.Array
    write_n: jax.Array
    mix: jax.Array | None
    """(n, n) from stream to stream, (n,) where streams stay apart, None where they stay as they are."""


class OneStream(nnx.Module):
    """The residual stream as it is: read whole, and added to."""

    def read(self, x_BSD: jax.Array) -> tuple[jax.Array, Any]:
        return x_BSD, None

    def write(self, x_BSD: jax.Array, logits: Any, out_BSD: jax.Array) -> jax.Array:
        return x_BSD + out_BSD


class HyperConnection(nnx.Module):
    """How one branch reads and writes n residual streams."""

    def __init__(
        self, config: Model, streams: Streams, number: int | jax.Array, *, loops: int | None = None, rngs: nnx.Rngs
    ):
        """Declare the parameters.

        Args:
            number: that of the branch; at first it reads stream number mod n.
            loops: how many loops have weights of their own; each reads the stream after that of the loop before.
        """
        self.settings, self.eps = streams, config.norm_eps
        n, D, shape, per_stream = streams.count, config.dim, _mix_shape(streams), streams.weights == "per_stream"
        bounded, made = streams.bounds != "none", streams.weights != "static"
        logits = 2 * n + (math.prod(shape) if shape else 0)
        kernel = (D, logits // n) if per_stream else (n, D, logits)
        kernel_axes = ("streams", "embed", "routes")[-len(kernel) :]

        def declare(first: Initializer, *axes: str, of: tuple[int, ...], elementwise: bool = True) -> nnx.Param:
            return parameter(rngs, first, of, axes, elementwise=elementwise, wide=True, loops=loops)

        self.read_bias = declare(in_turn(n, number, bounded=bounded), "streams", of=(n,))
        self.write_bias = declare(zeros if bounded else ones, "streams", of=(n,))
        self.mix_bias = declare(_mix_start(streams), *("streams",) * len(shape), of=shape) if shape else None
        first = Init.of(config).matrix if bounded else zeros
        self.kernel = declare(first, *kernel_axes, of=kernel, elementwise=False) if made else None
        scales = 3 if shape else 2
        self.scale = declare(constant(streams.initial_scale), "one", of=(scales,)) if made else None
        self.norm_scale = declare(ones, "embed", of=(D,)) if per_stream else None

    def read(self, x_BSnD: jax.Array) -> tuple[jax.Array, Logits]:
        """Return (what the branch gets (B, S, D) in x's type, the logits that `write` needs)."""
        wide = jnp.promote_types(x_BSnD.dtype, jnp.float32)
        names = "read_bias", "write_bias", "mix_bias", "kernel", "scale", "norm_scale"
        given = {name: use(own, wide) for name in names if (own := getattr(self, name)) is not None}
        logits = Logits(given["read_bias"], given["write_bias"], given.get("mix_bias"))
        if self.kernel is not None:
            spec = activation_spec("batch", "residual")
            logits = _each(self._of_tokens, jax.tree.map(lambda _: spec, logits), given, x_BSnD)
        spec = activation_spec("batch", "residual", "embed")
        return _each(self._read, spec, logits.read_n, x_BSnD), logits

    def write(self, x_BSnD: jax.Array, logits: Logits, out_BSD: jax.Array) -> jax.Array:
        """Return the streams (B, S, n, D) after the branch has given out_BSD, in x's type."""
        spec = activation_spec("batch", "residual", "streams", "embed")
        return _each(self._write, spec, (logits.write_n, logits.mix), x_BSnD, out_BSD)

    def _of_tokens(self, given: dict[str, jax.Array], x_BSnD: jax.Array) -> Logits:
        """Make the logits of every token."""
        x_BSnD, n, shape = at_least_fp32(x_BSnD), self.settings.count, _mix_shape(self.settings)
        if self.settings.weights == "joint":
            raw_BSw = _joint(x_BSnD, given["kernel"], self.eps)
            made = jnp.split(raw_BSw, [n, 2 * n], axis=-1)
        else:
            normed_BSnD = rms_norm(x_BSnD, given["norm_scale"], eps=self.eps)
            raw_BSnw = jnp.einsum("BSnD,Dw->BSnw", normed_BSnD, given["kernel"], precision="highest")
            made = [raw_BSnw[..., 0], raw_BSnw[..., 1], raw_BSnw[..., 2:]]
        if self.settings.bounds == "none":
            made = [jnp.tanh(part) for part in made]
        scale = given["scale"]
        read_BSn, write_BSn = (given[name] + scale[i] * made[i] for i, name in enumerate(("read_bias", "write_bias")))
        if not shape:
            return Logits(read_BSn, write_BSn, None)
        return Logits(read_BSn, write_BSn, given["mix_bias"] + scale[2] * made[2].reshape(*x_BSnD.shape[:2], *shape))

    def _read(self, read_n: jax.Array, x_BSnD: jax.Array) -> jax.Array:
        match self.settings.bounds:
            case "sigmoid":
                read_n = jax.nn.sigmoid(read_n) + self.settings.eps
            case "softmax":
                read_n = jax.nn.softmax(read_n)
        return jnp.sum(read_n[..., None] * x_BSnD, axis=-2).astype(x_BSnD.dtype)

    def _write(self, given: tuple[jax.Array, jax.Array | None], x_BSnD: jax.Array, out_BSD: jax.Array) -> jax.Array:
        write_n, mix = given
        match self.settings.bounds:
            case "sigmoid":
                write_n = 2 * jax.nn.sigmoid(write_n)
            case "softmax":
                write_n = jax.nn.softmax(write_n)
        written_BSnD = write_n[..., None] * out_BSD[:, :, None]
        return (self._mixed(mix, x_BSnD) + written_BSnD).astype(x_BSnD.dtype)

    def _mixed(self, logits: jax.Array | None, x_BSnD: jax.Array) -> jax.Array:
        mix = self.settings.mix
        if logits is None:
            return x_BSnD
        match mix:
            case DiagonalMix():
                return jax.nn.sigmoid(logits)[..., None] * x_BSnD
            case SinkhornMix():
                logits = sinkhorn(
                    logits,
                    iterations=mix.iterations,
                    eps=self.settings.eps,
                    temperature=mix.temperature,
                    last=mix.last,
                )
        return jnp.einsum("...jk,BSjD->BSkD" if logits.ndim == 2 else "BSjk,BSjD->BSkD", logits, at_least_fp32(x_BSnD))


class Ends(nnx.Module):
    """Where streams begin and end: copies of one, and what becomes of them."""

    def __init__(self, config: Model, streams: Streams, *, rngs: nnx.Rngs):
        self.settings, self.eps = streams, config.norm_eps
        n, learned = streams.count, streams.collapse == "head"
        shape, axes, first = (n, config.dim, n), ("streams", "embed", "routes"), Init.of(config).matrix
        start = constant(streams.initial_scale)
        self.kernel = parameter(rngs, first, shape, axes, wide=True) if learned else None
        self.scale = parameter(rngs, start, (1,), ("one",), elementwise=True) if learned else None
        self.bias = parameter(rngs, zeros, (n,), ("streams",), elementwise=True) if learned else None

    def spread(self, x_BSD: jax.Array) -> jax.Array:
        """Return n copies, (B, S, n, D)."""
        return jnp.broadcast_to(x_BSD[:, :, None], (*x_BSD.shape[:2], self.settings.count, x_BSD.shape[2]))

    def collapse(self, x_BSnD: jax.Array) -> jax.Array:
        """Return one stream (B, S, D), in x's type."""
        match self.settings.collapse:
            case "mean":
                return jnp.mean(at_least_fp32(x_BSnD), axis=2).astype(x_BSnD.dtype)
            case "sum":
                return jnp.sum(at_least_fp32(x_BSnD), axis=2).astype(x_BSnD.dtype)
        wide = jnp.promote_types(x_BSnD.dtype, jnp.float32)
        given = [use(own, wide) for own in (self.kernel, self.scale, self.bias)]
        return _each(self._weighted, activation_spec("batch", "residual", "embed"), given, x_BSnD)

    def _weighted(self, given: list[jax.Array], x_BSnD: jax.Array) -> jax.Array:
        kernel, scale, bias = given
        logits_BSn = bias + scale * _joint(at_least_fp32(x_BSnD), kernel, self.eps)
        weights_BSn = jax.nn.sigmoid(logits_BSn) + self.settings.eps
        return jnp.sum(weights_BSn[..., None] * x_BSnD, axis=2).astype(x_BSnD.dtype)


def build_connection(config: Model, number: int | jax.Array, *, rngs: nnx.Rngs) -> OneStream | HyperConnection:
    """Make what branch `number` of a stack of layers reads and writes by."""
    if config.streams is None:
        return OneStream()
    return HyperConnection(config, config.streams, number, rngs=rngs)


def in_turn(count: int, number: int | jax.Array, *, bounded: bool) -> Initializer:
    """Choose stream number mod n, and the one after it at every further call: a one-hot vector, or logits of one."""
    calls = 0

    def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        nonlocal calls
        chosen_n = jax.nn.one_hot((number + calls) % count, count, dtype=dtype)
        calls += 1
        return CHOSEN * (2 * chosen_n - 1) if bounded else chosen_n

    return draw  # type: ignore[return-value]


def _mix_shape(streams: Streams) -> tuple[int, ...]:
    match streams.mix:
        case IdentityMix():
            return ()
        case DiagonalMix():
            return (streams.count,)
        case _:
            return (streams.count, streams.count)


def _mix_start(streams: Streams) -> Initializer:
    match streams.mix:
        case DiagonalMix(initial_keep=keep):
            return constant(math.log(keep / (1 - keep)))
        case SinkhornMix(initial_diagonal=above):
            return _diagonal(above)
        case FreeMix():
            return _diagonal(1.0)
    raise AssertionError("what is not mixed has no logits")


def _diagonal(value: float) -> Initializer:
    def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return value * jnp.eye(shape[0], dtype=dtype)

    return draw  # type: ignore[return-value]


def _joint(x_BSnD: jax.Array, kernel_nDw: jax.Array, eps: float) -> jax.Array:
    """Multiply all streams of a token, RMS-normalised as one, with a matrix: (B, S, w)."""
    # The product comes first, so that nothing of the size of the streams is written.
    raw_BSw = jnp.einsum("BSnD,nDw->BSw", x_BSnD, kernel_nDw, precision="highest")
    return raw_BSw * jax.lax.rsqrt(jnp.mean(jnp.square(x_BSnD), axis=(2, 3))[..., None] + eps)


def _each(function: Callable[..., Any], specs: Any, given: Any, *xs: jax.Array) -> Any:
    """Call function(given, *xs) on every device for its own tokens. given: parameters, or what is of every token."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not splitting(mesh):
        return function(given, *xs)

    def on_device(given: Any, *xs: jax.Array) -> Any:
        return function(jax.tree.map(vary_whole, given), *xs)

    return on_each_device(on_device, given, *xs, out_specs=specs)
