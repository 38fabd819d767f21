"""The smallest parts: parameters with logical axes, a linear map, a norm, an embedding."""

from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, ones, zeros

from looplm.config.schema import Model, Place
from looplm.ops.norm import deviation_norm, layer_norm, rms_norm
from looplm.ops.weight_product import weight_product
from looplm.sharding.collective import per_channel, split_sequence, use
from looplm.sharding.rules import activation_spec

Module = TypeVar("Module", bound=nnx.Module)
Group = Literal["gate", "injection", "layers", "adapter", "ids"]
"""Groups of parameters that an optimizer or an objective may treat apart; all others have no group."""


class LoopParam(nnx.Param):
    """A parameter of which every loop has its own. Its first dim counts loops, before that of stacked layers.

    The body of the loops cuts it by the loop's number, so the module that declares it sees the slice of one loop and
    need not know which. Loops beyond the first dim use the last slice.
    """


def parameter(
    rngs: nnx.Rngs,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    *,
    elementwise: bool = False,
    decays: bool | None = None,
    wide: bool | None = None,
    gathers_itself: bool = False,
    used: tuple[int, int] = (1, 1),
    balances: bool = False,
    loops: int | None = None,
) -> nnx.Param:
    """Declare a float32 parameter with its logical axes (see `sharding.rules`).

    Args:
        init: its first value.
        shape, axes: of one loop, and of one layer where layers are stacked.
        elementwise: whether it is multiplied with or added to activations.
        decays: whether weight decay applies; None: if it is not elementwise.
        wide: whether it is used in float32, whatever the compute type; None: if it is elementwise.
        gathers_itself: whether it may stay split over devices until it is used (`sharding.gather = per_layer`).
        used: (k, n) where a token uses k of n equal parts.
        loops: how many loops have a value of their own, each drawn separately; None: all loops share one.
        balances: whether it moves against the load of experts, by a rule and not by a gradient.
    """
    decays = not elementwise if decays is None else decays
    wide = elementwise if wide is None else wide
    if loops is None:
        value = init(rngs.params(), shape, jnp.float32)
    else:
        value = jnp.stack([init(rngs.params(), shape, jnp.float32) for _ in range(loops)])
    return (nnx.Param if loops is None else LoopParam)(
        value,
        axes=axes,
        elementwise=elementwise,
        decays=decays,
        wide=wide,
        gathers_itself=gathers_itself,
        used=used,
        balances=balances,
        group=None,
        place=None,
    )


def in_group(group: Group, module: Module, place: Place | None = None) -> Module:
    """Declare which group the parameters of a module belong to, and in which stack of layers they are."""
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(group=group, place=place)
    return module


def stacked(create: Callable[..., Module], count: int, rngs: nnx.Rngs, *of_each: jax.Array) -> Module:
    """Make `count` modules into one whose parameters are stacked on a leading dim, which their axes do not name. In a
    `LoopParam` the dim of loops comes before it.

    create: called with random numbers, and with what of_each has for every module: arrays (count, ...).
    """
    out_axes = nnx.StateAxes({LoopParam: 1, ...: 0})
    return nnx.split_rngs(splits=count)(nnx.vmap(create, in_axes=0, out_axes=out_axes))(rngs, *of_each)


def of_every_loop(create: Callable[[nnx.Rngs], Module], loops: int | None, rngs: nnx.Rngs) -> Module:
    """Make a module of which each of so many loops has its own, drawn separately: all its parameters are `LoopParam`s.
    They are gathered before the loops, which cut them. loops: None for a module that all loops share."""
    if loops is None:
        return create(rngs)
    module = nnx.split_rngs(splits=loops)(nnx.vmap(create, in_axes=0, out_axes=0))(rngs)
    for _, part in list(nnx.iter_graph(module)):
        for name, variable in list(vars(part).items()) if isinstance(part, nnx.Module) else ():
            if isinstance(variable, nnx.Param):
                declared = variable.get_metadata() | {"gathers_itself": False}
                setattr(part, name, LoopParam(variable.get_value(), **declared))
    return module


class Linear(nnx.Module):
    """einsum(equation, x, kernel), and what an adapter adds to it. The kernel is cast where it is used, inside the
    loop's body, so that its gradient is summed over loops in float32."""

    adapter: Callable[[jax.Array], jax.Array] | None = None
    """See `lora.py`, which sets it."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        init: Initializer,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        out: tuple[str, ...],
        *,
        decays: bool = True,
        used: tuple[int, int] = (1, 1),
    ):
        self.equation, self.out = equation, out
        self.kernel = parameter(rngs, init, shape, axes, decays=decays, gathers_itself=True, used=used)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = weight_product(in_order(self.equation), x, use(self.kernel, x.dtype), activation_spec(*self.out))
        return out if self.adapter is None else out + self.adapter(x)


def in_order(equation: str) -> str:
    """Rename the letters that an einsum sums over, so that their alphabetical order is that of the kernel's dims.

    `jnp.einsum` sums over dims in the order of their letters, and a CPU turns a kernel whose dims lie otherwise at
    every call.
    """
    x, kernel, out = equation.replace("->", ",").split(",")
    summed = [letter for letter in kernel if letter not in out]
    renamed = str.maketrans("".join(summed), "".join(sorted(summed)))
    return f"{x},{kernel}->{out}".translate(renamed)


class RMSNorm(nnx.Module):
    """RMSNorm over the last dim, with a learned scale."""

    def __init__(self, rngs: nnx.Rngs, dim: int, eps: float, axis: str = "embed", *, loops: int | None = None):
        self.eps = eps
        self.scale = parameter(rngs, ones, (dim,), (axis,), elementwise=True, loops=loops)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = use(self.scale, jnp.promote_types(x.dtype, jnp.float32))
        return per_channel(lambda scale, x: rms_norm(x, scale, eps=self.eps), [scale], x)


class LayerNorm(nnx.Module):
    """LayerNorm over the last dim, with a learned scale and bias. over_deviation: divide by the unbiased standard
    deviation + eps."""

    def __init__(self, rngs: nnx.Rngs, dim: int, eps: float, *, over_deviation: bool = False, loops: int | None = None):
        self.eps, self.norm = eps, deviation_norm if over_deviation else layer_norm
        self.scale = parameter(rngs, ones, (dim,), ("embed",), elementwise=True, loops=loops)
        self.bias = parameter(rngs, zeros, (dim,), ("embed",), elementwise=True, loops=loops)

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        vectors = [use(self.scale, wide), use(self.bias, wide)]
        return per_channel(lambda scale, bias, x: self.norm(x, scale, bias, eps=self.eps), vectors, x)


class UnitNorm(nnx.Module):
    """RMSNorm without a scale. eps: None for the machine epsilon."""

    def __init__(self, eps: float | None = None, *, over_places: bool = False):
        self.eps, self.over_places = eps, over_places

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.over_places:
            return jnp.swapaxes(rms_norm(jnp.swapaxes(x, -1, -2), eps=self.eps), -1, -2)
        return rms_norm(x, eps=self.eps)


def build_norm(
    config: Model, *, rngs: nnx.Rngs, loops: int | None = None, over_places: bool = False
) -> RMSNorm | LayerNorm | UnitNorm:
    """Make a norm of the residual stream, of the kind that the config names.

    Args:
        loops: how many have a scale of their own; None: all share one.
        over_places: normalise every channel over the places of the sequence, for which there is no scale.
    """
    if config.norm == "unit":
        return UnitNorm(config.norm_eps, over_places=over_places)
    assert not over_places, "config.check refuses it"
    if config.norm in ("layer", "layer_std"):
        over_deviation = config.norm == "layer_std"
        return LayerNorm(rngs, config.dim, config.norm_eps, over_deviation=over_deviation, loops=loops)
    return RMSNorm(rngs, config.dim, config.norm_eps, loops=loops)


class HeadsNorm(nnx.Module):
    """RMSNorm over the last two dims together, with a learned scale."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, int], eps: float, axis: str, *, loops: int | None = None):
        self.eps = eps
        self.scale = parameter(rngs, ones, shape, (axis, "head_dim"), elementwise=True, loops=loops)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = use(self.scale, jnp.promote_types(x.dtype, jnp.float32))
        return per_channel(lambda scale, x: rms_norm(x, scale, eps=self.eps, num_dims=2), [scale], x)


class Embedding(nnx.Module):
    """The table of token embeddings."""

    def __init__(self, rngs: nnx.Rngs, init: Initializer, vocab_size: int, dim: int):
        self.table = parameter(rngs, init, (vocab_size, dim), ("vocab", "embed"))

    def __call__(self, tokens_BS: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Look tokens up: (B, S, D) in the layout of the residual stream.

        Ids must be below V: JAX would silently clamp larger ones (the loader checks them).
        """
        return split_sequence(rows_of(use(self.table, dtype), tokens_BS, "batch", "sequence", "embed"))


def rows_of(table: jax.Array, ids: jax.Array, *axes: str) -> jax.Array:
    """Look rows of a whole table up: (*ids, D), laid out by these logical axes."""
    if (spec := activation_spec(*axes)) is None:
        return table[ids]
    # A gather cannot index a dim that is split over devices: make the rows whole, keep the `reduced` marking.
    reduced = jax.typeof(table).sharding.spec.reduced
    rows = jax.sharding.reshard(table, jax.sharding.PartitionSpec(None, None, reduced=reduced))
    return rows.at[ids].get(out_sharding=spec)
