"""What entering gives: for every loop, and for those who leave."""

from typing import NamedTuple

import jax

from looplm.model.cache import KVCache
from looplm.model.report import Report
from looplm.model.value_embedding import Embedded


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


class Entered(NamedTuple):
    """What `enter` gives beside the inputs of the loops."""

    values: Embedded
    """Value embeddings of all stacks."""
    cache: KVCache | None
    """The prelude's cache."""
    report: Report
    """The prelude's report, with T = 1 visits."""
