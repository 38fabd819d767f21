"""A loop over some tokens of every sequence: their rows are gathered, go through the loop, and are put back.

Shapes are static, so a loop takes as many rows of every sequence. Where fewer tokens are in it, rows of others fill up;
these stand behind, where causal attention lets nobody see them, and nothing of them is put back.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.model.cache import KVCache
from looplm.model.context import Context
from looplm.model.inputs import Inputs
from looplm.model.report import Report
from looplm.ops.attention import Mask
from looplm.sharding.collective import lay_out

if TYPE_CHECKING:
    from looplm.model.core import Core


class Rows(NamedTuple):
    """The rows of a loop."""

    token_BC: jax.Array
    """The token of every row, int32: those that are in the loop in their order, then others."""
    row_BS: jax.Array
    """The row of every token that is in the loop, int32; C for the others."""


Admitted = Rows | jax.Array | None
"""Who is in a loop: the rows that alone go through it; or which tokens the others may see, (B, S) bool; None: all."""


def rows_of(in_loop_BS: jax.Array, count: int) -> Rows:
    """Make the rows of a loop. in_loop_BS: at most `count` tokens of every sequence."""
    in_loop_BS = lay_out(in_loop_BS, "batch", "sequence")
    places_BS = lay_out(
        jnp.broadcast_to(jnp.arange(in_loop_BS.shape[1], dtype=jnp.int32), in_loop_BS.shape), "batch", "sequence"
    )
    # JAX 0.10 does not lay `argsort` out on a mesh.
    _, token_BS = jax.lax.sort((~in_loop_BS, places_BS), dimension=1, num_keys=1, is_stable=True)
    before_BS = jnp.cumsum(in_loop_BS, axis=1, dtype=jnp.int32) - 1
    return Rows(token_BS[:, :count], jnp.where(in_loop_BS, before_BS, count))


def step_among(
    admitted: Admitted, core: "Core", state: Any, inputs: Inputs, context: Context, cache: KVCache | None
) -> tuple[Any, KVCache | None, Report]:
    """Run one loop for those who are in it; see `Core.step`. Where rows are gathered, the new state of all other tokens
    is 0."""
    if not isinstance(admitted, Rows):
        return core.step(state, inputs, replace(context, mask=context.mask.among(admitted)), cache)
    take = partial(_take, rows=admitted)
    entered, embedded, tokens, _ = inputs
    few = Inputs(take(entered), take(embedded), _at(tokens, admitted.token_BC))
    new, _, report = core.step(jax.tree.map(take, state), few, _context(context, admitted), None)
    return jax.tree.map(lambda new: _put(new, admitted), new), cache, report


def _context(context: Context, rows: Rows) -> Context:
    """Return the context of the rows. They keep their positions, documents and order, so that a causal mask without a
    window, made anew, is that of the whole sequence."""

    def few(x_BS: jax.Array | None) -> jax.Array | None:
        return None if x_BS is None else _at(x_BS, rows.token_BC)

    mask, C = context.mask, rows.token_BC.shape[1]
    assert (mask.kind, mask.window) == ("causal", None), "config.check refuses the others"
    return replace(
        context,
        positions_BS=_at(context.positions_BS, rows.token_BC),
        types_BS=few(context.types_BS),
        counted_BS=few(context.counted_BS),
        mask=Mask("causal", None, C, segments_BS=few(mask.segments_BS), backend=mask.backend),
    )


def _at(x: jax.Array, place_BM: jax.Array) -> jax.Array:
    """Return what stands at places of every sequence: (B, M, ...) of (B, S, ...); 0 at those beyond the end."""
    index = place_BM.reshape(*place_BM.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)


# Each is the other's gradient, so that neither scatters.
@jax.custom_vjp
def _take(x: jax.Array, rows: Rows) -> jax.Array:
    """Gather the rows: (B, C, ...) of (B, S, ...)."""
    return _at(x, rows.token_BC)


@jax.custom_vjp
def _put(x: jax.Array, rows: Rows) -> jax.Array:
    """Put the rows back: (B, S, ...) of (B, C, ...), 0 for tokens that have none."""
    return _at(x, rows.row_BS)


def _gather_filled(x: jax.Array, rows: Rows) -> jax.Array:
    """Gather the rows, 0 for those that fill up."""
    S = rows.row_BS.shape[1]
    filled_BC = _at(rows.row_BS, rows.token_BC) == rows.token_BC.shape[1]
    return _at(x, jnp.where(filled_BC, S, rows.token_BC))


_take.defvjp(lambda x, rows: (_take(x, rows), rows), lambda rows, cotangent: (_put(cotangent, rows), None))
_put.defvjp(lambda x, rows: (_put(x, rows), rows), lambda rows, cotangent: (_gather_filled(cotangent, rows), None))
