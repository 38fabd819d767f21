"""What every loop gets."""

from typing import NamedTuple

import jax


class Inputs(NamedTuple):
    """What every loop gets, the same for all."""

    entered_BSD: jax.Array
    """The prelude's output."""
    embedded_BSD: jax.Array
    """The embeddings, which entered the prelude."""
    tokens_BS: jax.Array
    """The ids."""
    values_nBSKH: jax.Array | None = None
    """Value embeddings of the block's layers that have one."""
