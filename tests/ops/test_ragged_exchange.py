"""Slices of rows between devices: against loops in numpy, forward, back and the gradient, with sizes that may be 0."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from looplm.ops.ragged_exchange import Slices, exchange, windows

P, E, D, ROWS = 4, 8, 3, 20
"""Devices, experts, numbers of a row, rows of a device."""
SIZES = {
    "random": np.random.default_rng(0).multinomial(ROWS, np.ones(E) / E, size=P),
    "skewed": np.random.default_rng(1).multinomial(ROWS, [0.7, 0, 0, 0.1, 0, 0.1, 0, 0.1], size=P),
    "all_to_one": np.eye(E, dtype=int)[[5] * P] * ROWS,
    "one_device_has_none": np.array([[ROWS, *[0] * 7], [0] * 8, [0, 3, 0, 4, 0, 5, 0, 8], [0] * 7 + [ROWS]]),
}
WINDOWS = [(0, P * ROWS), (0, 13), (13, 13), (26, 40), (70, 13)]
"""First place and number of places: all of them, and parts whose ends are in the middle of an expert's rows."""


def random_rows(count, seed):
    return np.random.default_rng(seed).normal(size=(P, count, D)).astype(np.float32)


def arrivals(sizes_pE, device):
    """(expert, sender, row) of everything that comes to a device, in order."""
    starts = np.cumsum(sizes_pE, axis=1) - sizes_pE
    held = E // P
    return [
        (expert, sender, starts[sender, expert] + i)
        for expert in range(device * held, (device + 1) * held)
        for sender in range(P)
        for i in range(sizes_pE[sender, expert])
    ]


@cache
def compiled(size):
    mesh = jax.make_mesh((P,), ("expert",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:P])
    split = PartitionSpec("expert")

    def on_device(first, rows, sizes, cotangent):
        sizes_pE, index = jax.lax.all_gather(sizes[0], "expert"), jax.lax.axis_index("expert")
        there, back, held = windows(sizes_pE, index, first[0], size)
        arrived, pull_back = jax.vjp(lambda rows: exchange(rows, there, back, size, "expert"), rows[0])
        home = exchange(arrived, back, there, ROWS, "expert")
        slices = jax.tree.map(lambda x: x[None], (there, back))
        return arrived[None], home[None], pull_back(cotangent[0])[0][None], held[None], slices

    function = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=split))
    sharding = jax.sharding.NamedSharding(mesh, split)
    return lambda *arrays: jax.device_get(function(*jax.device_put(arrays, sharding)))


@pytest.mark.parametrize(("first", "size"), WINDOWS)
def test_rows_arrive_in_the_order_of_experts_and_come_home(first, size):
    run = compiled(size)
    for name, sizes_pE in SIZES.items():
        rows = random_rows(ROWS, 2)
        cotangent = random_rows(size, 3)
        arrived, home, gradient, held, slices = run(np.full(P, first), rows, sizes_pE.astype(np.int32), cotangent)
        expected, back, pulled = np.zeros((P, size, D)), np.zeros_like(rows), np.zeros_like(rows)
        counts = np.zeros((P, E // P), int)
        for device in range(P):
            for place, (expert, sender, row) in enumerate(arrivals(sizes_pE, device)[first : first + size]):
                expected[device, place] = back[sender, row] = rows[sender, row]
                pulled[sender, row] = cotangent[device, place]
                counts[device, expert - device * (E // P)] += 1
        for found, wanted in ((arrived, expected), (home, back), (gradient, pulled), (held, counts)):
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert_xla_would_do_the_same(rows, size, slices, arrived)


def assert_xla_would_do_the_same(rows, size, slices, arrived):
    """What `jax.lax.ragged_all_to_all` is documented to do with the same slices: it does not run on a CPU."""
    there, back = slices
    found, written = np.zeros((P, size, D)), np.zeros((P, size), int)
    for sender in range(P):
        for receiver in range(P):
            for start, count, place in zip(*(x[sender, receiver] for x in there), strict=True):
                found[receiver, place : place + count] = rows[sender, start : start + count]
                written[receiver, place : place + count] += 1
            np.testing.assert_array_equal(there.sizes[sender, receiver], back.sizes[receiver, sender])
            np.testing.assert_array_equal(there.places[sender, receiver], back.starts[receiver, sender])
    assert np.all(written <= 1)
    assert all(np.all(x.starts >= 0) and np.all(x.sizes >= 0) and np.all(x.places >= 0) for x in (there, back))
    assert np.all(there.starts + there.sizes <= ROWS)
    assert np.all(there.places + there.sizes <= size)
    np.testing.assert_array_equal(found, arrived)


@pytest.mark.parametrize("gathered", [False, True])
def test_the_platform_of_the_program_decides(gathered):
    mesh = jax.sharding.AbstractMesh((P,), ("expert",), axis_types=(jax.sharding.AxisType.Explicit,))
    split = PartitionSpec("expert")

    def on_device(rows, starts):
        slices = Slices(starts, starts, starts)
        return exchange(rows, slices, slices, ROWS, "expert", gathered=gathered)

    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, split))
        for shape, dtype in (((P * ROWS, D), jnp.float32), ((P * P, E // P), jnp.int32))
    ]
    traced = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=split)).trace(*shapes)
    for platform in ("cpu", "tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        ragged = platform != "cpu" and not gathered
        assert ("ragged_all_to_all" in text) == ragged
        assert ("all_gather" in text) != ragged
