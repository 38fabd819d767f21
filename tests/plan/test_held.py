"""Memory of small programs that can be added up by hand, and what they send."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from looplm.config.schema import Mesh
from looplm.plan.flat import flatten
from looplm.plan.held import ON_CHIP, Held, Turns, held
from looplm.plan.sent import sent
from looplm.plan.sizes import Sizes
from looplm.sharding.mesh import build_mesh

N = 4096
WHOLE = 4 * N * N
"""Bytes of a matrix; one is too large to stay on a chip."""


def added_up(function: Callable[..., Any], *, count: int, owned: bool = False) -> Held:
    """What a function of so many matrices holds beside them (with them, where it owns them)."""
    jaxpr = jax.jit(function).trace(*[jax.ShapeDtypeStruct((N, N), "float32")] * count).jaxpr.jaxpr
    level, ones = flatten(jaxpr), dict.fromkeys(("data", "fsdp"), 1)
    return held(level, level.inputs if owned else (), Sizes(ones, ones, 1), Turns(1, 1))


def test_elementwise_work_has_no_memory_of_its_own() -> None:
    assert WHOLE > ON_CHIP
    found = added_up(lambda a, b: jnp.tanh(jnp.exp(a @ b) * 2 + 1), count=2)
    # The product and the result that takes its place.
    assert found == (WHOLE, 5 * WHOLE)


def test_an_array_lives_to_its_last_reader() -> None:
    def chain(a: jax.Array, b: jax.Array) -> jax.Array:
        c = a @ b
        d = c @ b  # c is read last here
        return (d @ b) @ b

    assert added_up(chain, count=2).peak == 2 * WHOLE
    kept = added_up(lambda a, b: (a @ b) @ ((a @ b) @ b), count=2)
    assert kept.peak == 3 * WHOLE
    assert added_up(chain, count=2, owned=True).peak == 3 * WHOLE  # a, and c; then d in the place of a


def test_a_loop_has_one_place_for_its_carry_and_stacks_what_it_returns() -> None:
    def looped(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(lambda carry, _: (carry @ b, carry), a @ b, None, length=8)

    found = added_up(looped, count=2)
    assert found.peak == (8 + 2) * WHOLE  # the stack, the carry, and the product before it becomes the carry
    # What is the same in every turn is not stacked.
    same = added_up(lambda a, b: jax.lax.scan(lambda carry, _: (carry @ b, b), a @ b, None, length=8)[0], count=2)
    assert same.peak == 2 * WHOLE


def test_a_table_that_is_sliced_is_not_read_whole() -> None:
    rows = added_up(lambda a: (a[:8] * 2) @ jnp.ones((N, 8)), count=1)
    assert rows.moved < WHOLE / 100


@pytest.mark.parametrize(
    ("before", "after", "kind", "share"),
    [
        (("data", None), (None, None), None, 0.0),  # a batch is never made whole
        (("fsdp", None), (None, None), "all-gather", 3 / 4),
        (("fsdp", None), (None, "fsdp"), "all-to-all", 3 / 4 / 4),
        ((None, None), ("fsdp", None), None, 0.0),
    ],
)
def test_what_a_change_of_layout_sends(before: tuple, after: tuple, kind: str | None, share: float) -> None:
    mesh = build_mesh(Mesh(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        laid_out = jax.ShapeDtypeStruct((N, N), "float32", sharding=NamedSharding(mesh, PartitionSpec(*before)))
        traced = jax.jit(lambda x: jax.sharding.reshard(x, PartitionSpec(*after))).trace(laid_out)
    found = list(sent(flatten(traced.jaxpr.jaxpr), Sizes(mesh.shape, mesh.shape, 1), Turns(1, 1)))
    assert [one.kind for one in found] == ([kind] if kind else [])
    assert sum(one.wire_bytes for one in found) == share * WHOLE


def test_sums_over_devices_are_taken_once_and_scattered_where_their_reader_splits_them() -> None:
    mesh = build_mesh(Mesh(fsdp=2, tensor=4))
    spec = PartitionSpec(None, "tensor")
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((N, N), "float32", sharding=NamedSharding(mesh, spec))
        w = jax.ShapeDtypeStruct((N, N), "float32", sharding=NamedSharding(mesh, PartitionSpec("tensor", None)))

        def branches(x: jax.Array, w: jax.Array) -> jax.Array:
            out = jnp.einsum("ij,jk->ik", x, w, out_sharding=PartitionSpec(None, None))
            more = jnp.einsum("ij,jk->ik", x, w * 2, out_sharding=PartitionSpec(None, None))
            return jax.sharding.reshard(out + more, PartitionSpec("tensor", None))

        traced = jax.jit(branches).trace(x, w)
    (one,) = sent(flatten(traced.jaxpr.jaxpr), Sizes(mesh.shape, mesh.shape, 1), Turns(1, 1))
    assert (one.kind, one.axes, one.wire_bytes) == ("reduce-scatter", ("tensor",), WHOLE * 3 / 4)
