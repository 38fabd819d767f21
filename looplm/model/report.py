"""What a layer reports of a visit beside its output, for losses, metrics and memories. Reports are an output of the
loops and never go from loop to loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.model.routing import Routing


@dataclass(frozen=True)
class Reporting:
    """What layers are asked to report. Static: another choice is another program."""

    routing: bool = False
    """What routers chose."""
    router_logits: bool = False
    """Whether that includes the routers' logits."""
    memory: bool = False
    """The input of every layer, which the next segment of a text may look at."""


NO_REPORT = Reporting()


class Report(NamedTuple):
    """What layers report. Leaves are (B, ...) for one visit of a layer, (B, layers, ...) for one of a stack, and
    (T, B, layers, ...) for T of them. A part is None where a layer has no such thing, or was not asked."""

    experts: Routing | None = None
    """What the router of the feed-forward chose."""
    heads: Routing | None = None
    """What the routers of the attention chose."""
    memory_BSD: jax.Array | None = None
    """What entered the layer, without gradient."""
    auxiliary_B: jax.Array | None = None
    """A loss of the layer's own, a mean over the tokens of a sequence, its weight included."""
    compressed_BnD: jax.Array | None = None
    """The places that were made of the tokens that leave the layer's memory, without gradient."""

    @property
    def empty(self) -> bool:
        return all(part is None for part in self)


def one_visit(report: Report) -> Report:
    """Give the report of a stack that ran once the leading dim of visits, T = 1."""
    return jax.tree.map(lambda leaf: leaf[None], report)


def of_unit(places: Sequence[Report]) -> Report:
    """Join the reports of the layers of a repeated unit, each (repeats, ...), in the order of the layers."""
    return _joined(lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), places)


def of_layers(units: Sequence[Report]) -> Report:
    """Join the reports of successive units, each (layers, B, ...), into that of a stack: (B, layers, ...)."""
    return _joined(lambda *leaves: jnp.moveaxis(jnp.concatenate(leaves), 0, 1), units)


def _joined(join: Callable[..., jax.Array], reports: Sequence[Report]) -> Report:
    """Apply `join` part by part to the reports that have the part."""

    def part(*parts: Any) -> Any:
        there = [part for part in parts if part is not None]
        return jax.tree.map(join, *there) if there else None

    return Report(*map(part, *reports))
