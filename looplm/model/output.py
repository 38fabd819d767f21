"""What moves from loop to loop, and what a forward pass gives."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

from looplm.config.schema import Place
from looplm.metrics.loop_stats import LoopStatistics
from looplm.model.cache import Cache, KVCache
from looplm.model.depth import Depth
from looplm.model.gates import log_exit_distribution
from looplm.model.report import Report

Reads = Literal["last", "all"] | jax.Array
"""Which loops of the window are read: the last one, all of them, or those at these places of the window, (T,) int."""


class Carry(NamedTuple):
    """What moves from loop to loop."""

    state: Any
    """The core's state: a tree of arrays (B, S, ...)."""
    halt: Any
    """The halting rule's accumulators: a tree of arrays (B, S, ...)."""
    cache: KVCache | None = None
    trail: tuple[jax.Array, ...] = ()
    """What `Core.read` gave of the states before this one, the latest first, without gradient; for statistics."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What a forward pass gives. R counts the loops of the window (`Depth.window`), whose last one is the last loop; T
    those that were read."""

    read: Any
    """What `then` made of every loop that was read, leaves (T, ...): what the head reads (T, B, S, D), unless the
    caller asked for something else."""
    state: Any
    """The core's state after the last loop."""
    halt: Any
    """The halting rule's accumulators after the last loop."""
    gate_logits_RBS: jax.Array | None
    """Logit of the probability of leaving after a loop, given that the token is in it; float32. None without a gate."""
    sequence_gate_BQ: jax.Array | None
    """Logits of the last state's sequence gate, halt and, if there is one, go on; float32. None without such a gate."""
    depth: Depth
    """How many loops ran."""
    read_active_TB: jax.Array | None
    """Which of the loops that were read did run, bool (T, 1) or (T, B); None where all of them did."""
    reports: dict[Place, Report]
    """Reports of every visit of the layers, leaves (visits, B, layers, ...). The prelude is visited once, the block in
    every loop of the window, the coda for every loop that is read. Only of places that report something."""
    statistics: LoopStatistics | None
    """Statistics of the last loop, or of all loops of the window, leaves (R, ...); None where nobody asked for them."""
    cache: Cache

    @property
    def log_exit_RBS(self) -> jax.Array | None:
        """log of the exit distribution over the window; None without a gate."""
        return (
            None if self.gate_logits_RBS is None else log_exit_distribution(self.gate_logits_RBS, self.depth.active_RB)
        )
