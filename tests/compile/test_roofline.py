"""Links of a torus: against routes that are counted one by one."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from looplm.compile.roofline import bandwidth
from looplm.hardware import NETWORK_BYTES_PER_S

SHAPE = (8, 4)
DEVICE = SimpleNamespace(torus=True, link_bytes_per_s=100.0)
MESH = SimpleNamespace(
    axis_names=("a", "b"),
    devices=np.array([SimpleNamespace(coords=coords) for coords in product(*map(range, SHAPE))]).reshape(SHAPE),
)


def busiest_link(dims):
    """Bytes over it where every device of these dims sends one byte to every other by shortest ways, dim after dim."""

    def ring(a, b, n):
        return min((a - b) % n, (b - a) % n)

    places = list(product(*(range(SHAPE[d]) for d in dims)))
    hops = [sum(ring(a[i], b[i], SHAPE[d]) for a in places for b in places) for i, d in enumerate(dims)]
    return max(hops) / (2 * len(places))  # alike for all links of a dim, two of them a device


@pytest.mark.parametrize(("axes", "dims"), [(("a",), (0,)), (("b",), (1,)), (("a", "b"), (0, 1))])
def test_what_goes_to_all_is_bound_by_the_longest_ring(axes, dims):
    sent = np.prod([SHAPE[d] for d in dims]) - 1
    bound = sent / bandwidth(DEVICE, MESH, axes, to_all=True)
    routed = busiest_link(dims) / DEVICE.link_bytes_per_s
    assert bound <= routed
    assert bound == pytest.approx(routed, rel=0.26)  # what a device keeps is not in the bytes, but in the mean way


def test_what_goes_to_neighbours_uses_all_links():
    assert [bandwidth(DEVICE, MESH, axes) for axes in (("a",), ("a", "b"))] == [200, 400]


def test_a_group_of_gpus_is_fast_if_all_that_lies_between_its_members_is_in_one_domain():
    device = SimpleNamespace(torus=False, link_bytes_per_s=450e9, domain=8)
    mesh = SimpleNamespace(axis_names=("data", "fsdp", "tensor"), shape={"data": 2, "fsdp": 8, "tensor": 2})
    mesh.devices = np.array([SimpleNamespace()] * 32).reshape(2, 8, 2)
    assert bandwidth(device, mesh, ("tensor",)) == 450e9
    assert bandwidth(device, mesh, ("fsdp",)) == NETWORK_BYTES_PER_S, "8 devices, every second of 16"
    mesh.shape["fsdp"], mesh.devices = 4, np.array([SimpleNamespace()] * 16).reshape(2, 4, 2)
    assert bandwidth(device, mesh, ("fsdp",)) == 450e9
    assert bandwidth(device, mesh, ("data",)) == NETWORK_BYTES_PER_S
