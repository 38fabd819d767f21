"""Stacks whose layers are not all of one kind: dense ones among layers with experts, some with a value embedding.

The layers run in scans: over runs of equal layers, or over the periods of a repeating pattern, whichever puts fewer
layers into the program.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.model.apart import is_apart
from looplm.model.report import Report, of_layers, of_unit

Tree = Any


class Unit(NamedTuple):
    """A few successive layers, by kind, and how often they repeat."""

    kinds: tuple[Hashable, ...]
    repeats: int


def plan(kinds: Sequence[Hashable]) -> tuple[Unit, ...]:
    """Cut the layers into units. Layers in front of a repeating pattern come one by one."""
    count = len(kinds)
    fewest = tuple(Unit((kind,), len(list(run))) for kind, run in groupby(kinds))
    for period in range(2, count // 2 + 1):
        first = count % period
        body = tuple(kinds[first : first + period])
        if tuple(kinds[first:]) == body * (count // period):
            periodic = (*(Unit((kind,), 1) for kind in kinds[:first]), Unit(body, count // period))
            fewest = min(fewest, periodic, key=written_layers)
    return fewest


def written_layers(units: Sequence[Unit]) -> int:
    """Count the layers that are put into the program."""
    return sum(len(unit.kinds) for unit in units)


def scan_layers(
    apply: Callable[[Hashable, Tree, Tree], tuple[Tree, Report]],
    carry: Tree,
    kinds: Sequence[Hashable],
    data: Callable[[range], Tree],
    *,
    unroll: bool,
) -> tuple[Tree, Report]:
    """Run all layers in order.

    Args:
        apply: (kind, carry, the layer's data) -> (carry, its report).
        kinds: of every layer.
        data: (which layers, all of one kind) -> their data, stacked.

    Returns:
        (carry, the report of all layers).
    """
    reports, done = list[Report](), 0
    for unit, repeats in plan(kinds):
        end = done + len(unit) * repeats
        places = [data(range(done + offset, end, len(unit))) for offset in range(len(unit))]

        def run(carry: Tree, places: list[Tree], unit: tuple[Hashable, ...] = unit) -> tuple[Tree, list[Report]]:
            said = []
            for kind, place in zip(unit, places, strict=True):
                carry, report = apply(kind, carry, place)
                said.append(report)
            return carry, said

        if any(map(is_apart, jax.tree.leaves(places, is_leaf=is_apart))):
            carry, said = written_out(run, carry, places, repeats)
        else:
            carry, said = jax.lax.scan(run, carry, places, unroll=unroll)
        reports.append(of_unit(said))
        done = end
    return carry, of_layers(reports)


def written_out(
    run: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree, length: int
) -> tuple[Tree, Tree]:
    """Do what a scan over `xs` does, with every step in the program."""
    said = []
    for i in range(length):
        carry, one = run(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs, is_leaf=is_apart))
        said.append(one)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *said)


def rows_at(tree: Tree, places: Sequence[int]) -> Tree:
    """Take rows at equal distances from every leaf."""
    step = places[1] - places[0] if len(places) > 1 else 1
    # A strided slice and no gather, which JAX 0.10 refuses for parameters marked `reduced`.
    rows = slice(places[0], places[-1] + 1, step)
    return jax.tree.map(lambda leaf: leaf if len(places) == leaf.shape[0] else leaf[rows], tree, is_leaf=is_apart)


def places_among(chosen: Sequence[bool]) -> list[int]:
    """Count for every layer the chosen ones before it. For a chosen layer that is its row in arrays that are stacked
    for the chosen ones alone."""
    return [sum(chosen[:i]) for i in range(len(chosen))]
