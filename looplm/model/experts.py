"""The experts of a layer, and how tokens get to them over devices.

On a mesh every device holds E / mesh.expert of them, whole over `fsdp`, their width split over `tensor`. Written per
device (`shard_map`), since rows are sorted on each device for itself. The kernels enter marked `reduced`, so their
gradients stay partial sums like all others; over `expert` there is nothing to reduce.

- Nothing dropped: every device sends each row, sorted by expert, to the device of its expert, and gets it back: an
  exchange of slices of any sizes. Arrays have one size, so it goes in rounds of `ROOM` times the mean; where the router
  is balanced one is enough, and where it is not, none of the rows is left out.
- With a capacity: every expert has a fixed number of places for each sequence; two all-to-alls carry them there and
  back.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.init import Init, of_each
from looplm.model.layers import parameter
from looplm.model.lora import ExpertLoRAs
from looplm.ops.grouped_matmul import grouped_matmul
from looplm.ops.permute import collect, limited_places, sorted_places, spread
from looplm.ops.ragged_exchange import exchange, windows
from looplm.ops.rounds import sum_of_rounds
from looplm.ops.scopes import done, needed
from looplm.sharding.collective import on_each_device, use, vary, vary_whole
from looplm.sharding.rules import activation_spec, num_shards, splitting

MATRICES = ("up", "gate", "down")
EXPERT, TENSOR, CONTEXT = "expert", "tensor", "context"
ROOM = 1.25
"""How many rows a device works on at a time, relative to those that come to it on average. More costs memory and
traffic in every step, less costs a second round more often."""
SUBLANES = 8
"""Rows of a TPU's tile; sizes are rounded up to a multiple."""


class Tokens(NamedTuple):
    """What comes to the experts of a layer."""

    x_BSD: jax.Array
    ids_BSk: jax.Array
    weights_BSk: jax.Array


Matrix = tuple[jax.Array, ...]
"""Of every expert: (W,), or (W, A, B) beside which an adapter stands (`lora.py`)."""
Dispatch = Callable[[Tokens, Sequence[Matrix]], tuple[jax.Array, jax.Array]]
"""(tokens, matrices) -> (out (B, S, D), dropped choices (B,)), on one device."""


class Experts(nnx.Module):
    """sum over the chosen experts of weight * f_e(x), f being SwiGLU or relu(x W_up) W_down."""

    adapter: ExpertLoRAs | None = None
    """See `adapt.py`, which sets it."""

    def __init__(self, config: Model, moe: schema.MoE, init: Init, *, rngs: nnx.Rngs):
        D, E = config.dim, moe.num_experts
        F = moe.expert_dim or config.hidden_dim
        self.moe = moe

        used = moe.experts_per_token, E

        def kernel(rule: Initializer, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
            return parameter(rngs, of_each(rule), (E, *shape), ("experts", *axes), gathers_itself=True, used=used)

        self.up = kernel(init.matrix, (D, F), ("embed", "hidden"))
        self.gate = kernel(init.matrix, (D, F), ("embed", "hidden")) if moe.expert == "swiglu" else None
        self.down = kernel(init.output, (F, D), ("hidden", "embed"))

    def __call__(
        self, x_BSD: jax.Array, ids_BSk: jax.Array, weights_BSk: jax.Array, *, with_capacity: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Run every token through its experts. Returns (out (B, S, D), dropped choices of every sequence (B,) int32).

        ids_BSk: the chosen experts; `num_experts` for padding, which is sent nowhere and gets 0.
        weights_BSk: what their outputs are multiplied with.
        with_capacity: whether a capacity, if the config has one, limits how many choices an expert takes.
        """
        capacity_factor = self.moe.capacity_factor if with_capacity else None
        dispatch = self._dropless if capacity_factor is None else partial(self._with_capacity, capacity_factor)
        matrices = [self._matrix(name, x_BSD.dtype) for name in MATRICES if getattr(self, name) is not None]
        if jax.sharding.get_abstract_mesh().empty:
            return dispatch(Tokens(x_BSD, ids_BSk, weights_BSk), matrices)
        out = activation_spec("batch", "sequence", "embed"), activation_spec("batch")
        return on_each_device(partial(self._on_device, dispatch), x_BSD, ids_BSk, weights_BSk, matrices, out_specs=out)

    def _matrix(self, name: str, dtype: jax.typing.DTypeLike) -> Matrix:
        pair = [] if self.adapter is None else self.adapter.pair(name)
        return tuple(use(parameter, dtype) for parameter in (getattr(self, name), *pair))

    def _on_device(
        self, dispatch: Dispatch, x: jax.Array, ids: jax.Array, weights: jax.Array, matrices: Sequence[Matrix]
    ) -> tuple[jax.Array, jax.Array]:
        splits = splitting(jax.sharding.get_abstract_mesh())
        # Tokens are the same along `tensor`, and the columns that they meet differ: their gradient is a sum over them.
        x, weights = (vary(array, splits & {TENSOR}) for array in (x, weights))
        out, dropped = dispatch(Tokens(x, ids, weights), jax.tree.map(vary_whole, matrices))
        return jax.lax.psum(out, TENSOR), jax.lax.psum(dropped, CONTEXT)

    def _dropless(self, tokens: Tokens, matrices: Sequence[Matrix]) -> tuple[jax.Array, jax.Array]:
        """Dispatch every choice: rows are the choices, sorted by expert."""
        x_nD, ids_nk, weights_nk = (x.reshape(-1, x.shape[-1]) for x in tokens)
        choice_M, places_nk, sizes_E = sorted_places(ids_nk, self.moe.num_experts)
        token_M = choice_M // ids_nk.shape[1]
        rows_MD = spread(x_nD, token_M, places_nk, full=True)
        weights_M1 = spread(weights_nk.reshape(-1, 1), choice_M, places_nk.reshape(-1, 1), full=True)
        if num_shards(EXPERT) == 1:
            y_MD = self._grouped(sizes_E, rows_MD, weights_M1, matrices)
        else:
            y_MD = self._exchanged(rows_MD, weights_M1, sizes_E, matrices)
        out_nD = collect(y_MD, token_M, places_nk, full=True)
        # Zeros made of the choices, so that shard_map takes them to vary over devices as the choices do.
        return out_nD.reshape(tokens.x_BSD.shape), jnp.sum(0 * tokens.ids_BSk, axis=(1, 2), dtype=jnp.int32)

    def _exchanged(
        self, rows_MD: jax.Array, weights_M1: jax.Array, sizes_E: jax.Array, matrices: Sequence[Matrix]
    ) -> jax.Array:
        """Send rows, sorted by expert, to the devices of their experts and get them back; see `_dropless`."""
        M = rows_MD.shape[0]
        size = -(-int(M * ROOM) // SUBLANES) * SUBLANES
        sizes_pE = jax.lax.all_gather(sizes_E, EXPERT)
        p = sizes_pE.shape[0]
        arriving_p = jnp.sum(sizes_pE.reshape(p, p, -1), axis=(0, 2))

        def one_round(
            r: jax.Array, where: tuple[jax.Array, ...], rows: jax.Array, weights: jax.Array, *matrices: Matrix
        ) -> jax.Array:
            sizes_pE, index = where
            there, back, sizes_h = windows(sizes_pE, index, r * size, size)
            rows = exchange(rows, there, back, size, EXPERT)
            weights = exchange(weights, there, back, size, EXPERT, gathered=True)
            with done(M / size):
                rows = self._grouped(sizes_h, rows, weights, matrices)
            return exchange(rows, back, there, M, EXPERT)

        where = sizes_pE, jax.lax.axis_index(EXPERT)
        return sum_of_rounds(one_round, -(-jnp.max(arriving_p) // size), where, rows_MD, weights_M1, *matrices)

    def _grouped(
        self, sizes_E: jax.Array, rows_MD: jax.Array, weights_M1: jax.Array, matrices: Sequence[Matrix]
    ) -> jax.Array:
        """Run sorted rows through the experts of this device; `sizes_E` says how many rows each of them has."""
        product = partial(grouped_matmul, sizes_E=sizes_E, backend=self.moe.backend)
        return self._expert(product, rows_MD, weights_M1, matrices)

    def _with_capacity(
        self, capacity_factor: float, tokens: Tokens, matrices: Sequence[Matrix]
    ) -> tuple[jax.Array, jax.Array]:
        x_BSD, ids_BSk, weights_BSk = tokens
        (B, S, k), E, D = ids_BSk.shape, self.moe.num_experts, x_BSD.shape[-1]
        parts, cuts = num_shards(EXPERT), num_shards(CONTEXT)
        limit_n = np.ceil(capacity_factor * np.arange(S * cuts + 1) * k / E).astype(np.int32)  # of n tokens
        C = int(limit_n[-1])
        chosen_BE = jnp.sum(ids_BSk[..., None] == jnp.arange(E), axis=(1, 2), dtype=jnp.int32)
        taken_BE = jnp.zeros_like(chosen_BE)
        if cuts > 1:
            all_cBE = jax.lax.all_gather(chosen_BE, CONTEXT)
            earlier_c = jnp.arange(cuts) < jax.lax.axis_index(CONTEXT)
            taken_BE = jnp.sum(jnp.where(earlier_c[:, None, None], all_cBE, 0), axis=0)
            chosen_BE = jnp.sum(all_cBE, axis=0)
        # A padded sequence has as few places as if it ended at its last token; the places above that count as taken.
        tokens_B1 = jnp.sum(chosen_BE, axis=1, keepdims=True) // k
        taken_BE += C - jnp.asarray(limit_n)[tokens_B1]
        choice_BM, places_BSk = jax.vmap(lambda ids, taken: limited_places(ids, E, C, taken))(ids_BSk, taken_BE)
        token_BM = choice_BM // k

        def to_experts(rows_BMD: jax.Array) -> jax.Array:
            rows_EBCD = jnp.moveaxis(rows_BMD.reshape(B, E, C, -1), 1, 0)
            if parts > 1:
                rows_EBCD = jax.lax.all_to_all(rows_EBCD, EXPERT, split_axis=0, concat_axis=1, tiled=True)
            return rows_EBCD.reshape(rows_EBCD.shape[0], -1, rows_EBCD.shape[-1])

        def home(rows_EMD: jax.Array) -> jax.Array:
            rows_EBCD = rows_EMD.reshape(rows_EMD.shape[0], -1, C, D)
            if parts > 1:
                rows_EBCD = jax.lax.all_to_all(rows_EBCD, EXPERT, split_axis=1, concat_axis=0, tiled=True)
            return jnp.moveaxis(rows_EBCD, 0, 1).reshape(B, E * C, D)

        rows_BMD = jax.vmap(spread)(x_BSD, token_BM, places_BSk)
        weights_BM1 = jax.vmap(spread)(weights_BSk.reshape(B, S * k, 1), choice_BM, places_BSk.reshape(B, S * k, 1))
        product = partial(jnp.einsum, "EMD,EDF->EMF")
        with needed(min(1.0, S * k / (E * C))):
            y_EMD = self._expert(product, to_experts(rows_BMD), to_experts(weights_BM1), matrices)
        dropped_B = jnp.sum((places_BSk == E * C) & (ids_BSk < E), axis=(1, 2), dtype=jnp.int32)
        return jax.vmap(collect)(home(y_EMD), token_BM, places_BSk), dropped_B

    def _expert(
        self,
        product: Callable[[jax.Array, jax.Array], jax.Array],
        rows: jax.Array,
        weights: jax.Array,
        matrices: Sequence[Matrix],
    ) -> jax.Array:
        """Run rows through their experts. The weight is multiplied in before the last product, which is linear: the
        gradient of a weight then needs what is kept anyway, and not the outputs."""
        up, *gate, down = matrices

        def through(rows: jax.Array, matrix: Matrix) -> jax.Array:
            kernel, *pair = matrix
            if not pair or self.adapter is None:
                return product(rows, kernel)
            a, b = pair
            return product(rows, kernel) + self.adapter.scale * product(product(rows, a), b)

        hidden = jax.nn.silu(through(rows, gate[0])) * through(rows, up) if gate else jax.nn.relu(through(rows, up))
        return through((hidden * weights).astype(rows.dtype), down)
