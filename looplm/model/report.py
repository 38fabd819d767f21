"""What a visit of a layer says beside its output. It leaves the loops as an output of theirs and is never carried."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.model.routing import Routing


@dataclass(frozen=True)
class Reporting:
    """What layers are asked to say. Static."""

    routing: bool = False
    """What routers did."""
    router_logits: bool = False
    """That includes their logits."""
    memory: bool = False
    """What later tokens may look at: the input of every layer."""


NO_REPORT = Reporting()


class Report(NamedTuple):
    """Leaves (B, ...); a stack puts its layers second, and visits (T, ...) come before all. None where a layer has no
    such part, or was not asked."""

    experts: Routing | None = None
    """Of the router of the feed-forward."""
    heads: Routing | None = None
    """Of the routers of the attention."""
    memory_BSD: jax.Array | None = None
    """What entered the layer, without gradient."""
    auxiliary_B: jax.Array | None = None
    """A loss of the layer's own, summed over a sequence."""

    @property
    def empty(self) -> bool:
        return all(part is None for part in self)


def one_visit(report: Report) -> Report:
    """The report of a stack that ran once, as one of T = 1 visits."""
    return jax.tree.map(lambda leaf: leaf[None], report)


def of_unit(places: Sequence[Report]) -> Report:
    """Joins the reports of the layers of a repeated unit, each (repeats, ...), in the order of the layers."""
    return _joined(lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), places)


def of_layers(units: Sequence[Report]) -> Report:
    """Joins the reports of successive units, each (layers, B, ...), into that of a stack: (B, layers, ...)."""
    return _joined(lambda *leaves: jnp.moveaxis(jnp.concatenate(leaves), 0, 1), units)


def _joined(join: Callable[..., jax.Array], reports: Sequence[Report]) -> Report:
    """Part by part, over those that have it."""

    def part(*parts: Any) -> Any:
        there = [part for part in parts if part is not None]
        return jax.tree.map(join, *there) if there else None

    return Report(*map(part, *reports))
