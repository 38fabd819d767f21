"""Stacks of two kinds of layers: dense ones among such with experts.

Runs of like layers are scanned over; a pattern that repeats over the whole stack is scanned over by its period.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp

Units = tuple[tuple[tuple[bool, ...], int], ...]
"""(which of some successive layers are dense, how often they repeat), one after the other."""


def units(is_dense: tuple[bool, ...]) -> Units:
    """The whole pattern as one repeated unit where it is one, else its runs."""
    count = len(is_dense)
    for period in range(2, count // 2 + 1):
        if count % period == 0 and is_dense == is_dense[:period] * (count // period) and len(set(is_dense)) > 1:
            return ((is_dense[:period], count // period),)
    return tuple(((dense,), len(list(run))) for dense, run in groupby(is_dense))


def in_units(
    applies: Sequence[Callable[[jax.Array, tuple], tuple[jax.Array, tuple]]],
    x_BSD: jax.Array,
    parameters: Sequence[Any],
    kept: Any,
    before_LBSW: jax.Array | None,
    plan: Units,
    *,
    unroll: bool,
) -> tuple[jax.Array, tuple]:
    """Runs the layers in order.

    Args:
        applies: (of layers with experts, of dense ones): (x, ((parameters, kept, before), None)) -> (x, visit).
        parameters: (of the layers with experts, of the dense ones), each stacked.
        kept: what every layer has of its own, stacked over all layers.
        before_LBSW: stacked over the layers with experts.

    Returns:
        (x, (kept, routing)), stacked like the arguments.
    """
    done, keeps, routings = [0, 0], list[Any](), list[Any]()
    for unit, repeats in plan:
        places, seen, first = [], [0, 0], sum(done)
        for offset, dense in enumerate(unit):
            size = sum(kind == dense for kind in unit)
            # Strided slices and no reshape, which JAX 0.10 refuses for parameters marked `reduced`.
            own = slice(done[dense] + seen[dense], done[dense] + size * repeats, size)
            anywhere = slice(first + offset, first + len(unit) * repeats, len(unit))
            before = None if dense else take(before_LBSW, own)
            places.append((take(parameters[dense], own), take(kept, anywhere), before))
            seen[dense] += 1

        def run(x_BSD: jax.Array, xs: list, unit: tuple[bool, ...] = unit) -> tuple[jax.Array, list]:
            visits = []
            for dense, place in zip(unit, xs, strict=True):
                x_BSD, one = applies[dense](x_BSD, (place, None))
                visits.append(one)
            return x_BSD, visits

        x_BSD, visits = jax.lax.scan(run, x_BSD, places, unroll=unroll)
        keeps.append(interleaved([own for own, _ in visits]))
        if experts := [routing for dense, (_, routing) in zip(unit, visits, strict=True) if not dense]:
            routings.append(interleaved(experts))
        done = [done[kind] + repeats * unit.count(bool(kind)) for kind in (0, 1)]
    join = lambda *leaves: jnp.concatenate(leaves)  # noqa: E731
    return x_BSD, (jax.tree.map(join, *keeps), jax.tree.map(join, *routings))


def take(tree: Any, index: int | slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def interleaved(trees: Sequence[Any]) -> Any:
    """Leaves (repeats, ...) of every place of a unit as (repeats * places, ...), in the order of the layers."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), *trees)
