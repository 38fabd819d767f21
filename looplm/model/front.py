"""What stands in front of the tokens: places that layers see as they see tokens, and the head does not.

Positions and mask are lengthened here and nowhere else; `LoopLM.leave` cuts the places off again.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import Ids, Model
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.init import Init
from looplm.model.layers import in_group, parameter, rows_of
from looplm.sharding.collective import lay_out, per_channel, use


class Front(nnx.Module):
    """Places by the id of the sequence, learned ones, and zeros."""

    def __init__(self, config: Model, init: Init, *, rngs: nnx.Rngs):
        assert config.front is not None, "a model with places in front"
        front, self.places = config.front, config.front_places
        self.by_id = in_group("ids", IdTable(front.ids, config.dim, rngs=rngs)) if front.ids else None
        shape, axes = (front.learned, config.dim), ("one", "embed")
        self.learned = parameter(rngs, init.embedding, shape, axes, elementwise=True) if front.learned else None
        self.zeros = front.zeros

    def __call__(self, embedded_BSD: jax.Array, ids_B: jax.Array | None) -> jax.Array:
        """Put the places in front of the embeddings: (B, P + S, D)."""

        def empty(places: int) -> jax.Array:
            shape = (embedded_BSD.shape[0], places, embedded_BSD.shape[2])
            return lay_out(jnp.zeros_like(embedded_BSD, shape=shape), "batch", "sequence", "embed")

        parts = []
        if self.by_id is not None:
            if ids_B is None:
                raise UserError(
                    "model.front.ids has a row for the id of every sequence, and these sequences come without ids; "
                    "give them, or set model.front.ids=null"
                )
            parts.append(self.by_id(ids_B, embedded_BSD.dtype))
        if self.learned is not None:
            learned_PD = use(self.learned, embedded_BSD.dtype)
            parts.append(per_channel(jnp.add, [learned_PD], empty(learned_PD.shape[0])))
        return jnp.concatenate([*parts, empty(self.zeros), embedded_BSD], axis=1)

    def lengthened(self, context: Context) -> Context:
        """Let positions and mask count the places, which belong to the document of the first token."""
        mask, places = context.mask, self.places
        assert mask.split is None, "config.check refuses it"
        assert mask.place_BS is mask.present_BT is None, "a text is not written behind them"

        def like_first(x_BS: jax.Array) -> jax.Array:
            first_BP = jnp.broadcast_to(x_BS[:, :1], (x_BS.shape[0], places))
            return jnp.concatenate([first_BP, x_BS], axis=1)

        moved_BS = like_first(context.positions_BS + places)
        before_BP = jnp.arange(places) + 0 * moved_BS[:, :places]
        longer = replace(mask, num_keys=mask.num_keys + places)
        if mask.segments_BS is not None:
            longer = replace(longer, segments_BS=like_first(mask.segments_BS))
        if mask.prefix_BT is not None:
            longer = replace(longer, prefix_BT=like_first(mask.prefix_BT))
        return replace(
            context,
            positions_BS=jnp.concatenate([before_BP, moved_BS[:, places:]], axis=1),
            counted_BS=None if context.counted_BS is None else like_first(context.counted_BS),
            mask=longer,
        )


class IdTable(nnx.Module):
    """A row for every id, as several places of the model's width."""

    def __init__(self, kind: Ids, dim: int, *, rngs: nnx.Rngs):
        self.dim = dim
        # No decay: only rows that a step uses may move.
        shape, axes = (kind.num_ids, kind.dim), ("value_vocab", "one")
        self.table = parameter(rngs, zeros, shape, axes, decays=False)

    def __call__(self, ids_B: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Look ids up, int32 below the number of rows: (B, places, D), what is missing being zeros."""
        row_BE = rows_of(use(self.table, dtype), ids_B, "batch", "one")
        missing = -row_BE.shape[1] % self.dim
        return jnp.pad(row_BE, ((0, 0), (0, missing))).reshape(row_BE.shape[0], -1, self.dim)
