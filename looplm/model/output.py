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
"""Which loops of the window are read; an int array of places in the window means those."""


class Carry(NamedTuple):
    """What moves from loop to loop."""

    state: Any
    """Of the core."""
    halt: Any
    """Accumulators of the halting rule."""
    cache: KVCache | None = None
    trail: tuple[jax.Array, ...] = ()
    """What was read of the states before this one, the latest first, without gradient."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What a forward pass gives; R counts the loops of the window, the last of which is the last loop."""

    read: Any
    """What was made of every loop that was read, leaves (T, ...): what the head reads (T, B, S, D), unless the caller
    said otherwise."""
    state: Any
    """The last one, of the core."""
    halt: Any
    """Last accumulators of the halting rule."""
    gate_logits_RBS: jax.Array | None
    """logit of the exit probability, float32; None without a gate."""
    depth: Depth
    read_RB: jax.Array | None
    """Which of the loops that were read ran, (T, 1) or (T, B); None where all of them did."""
    reports: dict[Place, Report]
    """What layers said in every visit, leaves (T, B, layers, ...): T = 1 for the prelude, the loops of the window, or
    what was read by the coda. Only of places that said something."""
    statistics: LoopStatistics | None
    """Of the last loop; None when not asked for."""
    cache: Cache

    @property
    def log_exit_RBS(self) -> jax.Array | None:
        """log of the exit distribution over the window; None without a gate."""
        return (
            None if self.gate_logits_RBS is None else log_exit_distribution(self.gate_logits_RBS, self.depth.active_RB)
        )
