"""Slices and the axes over them, and the table of parameters, against counts by hand."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from looplm.config.schema import Mesh, MoE, Run
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM
from looplm.model.parameter_table import parameter_table, totals
from looplm.sharding.mesh import across_slices, build_mesh, check_fit


@dataclass(frozen=True)
class SlicedDevice:
    """Enough of a device for a mesh: eight on four hosts in two slices, numbered against the grain."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"

    @property
    def process_index(self) -> int:
        return self.id // 2


TWO_SLICES = [SlicedDevice(id, slice_index=id % 2) for id in range(8)]


@pytest.mark.parametrize(
    ("sizes", "outer"),
    [({"replica": 2, "fsdp": 4}, "replica"), ({"data": 2, "fsdp": 2, "tensor": 2}, "data"), ({"fsdp": 8}, "fsdp")],
)
def test_the_outermost_axis_goes_across_slices(sizes: dict[str, int], outer: str) -> None:
    mesh = build_mesh(Mesh(**{"fsdp": 1, **sizes}), TWO_SLICES)  # type: ignore[arg-type]
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    halves = np.split(slices, 2, axis=mesh.axis_names.index(outer))
    assert [set(half.ravel().tolist()) for half in halves] == [{0}, {1}]
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))  # type: ignore[attr-defined]


@pytest.mark.parametrize("sizes", [(2, 1, 4, 1, 1, 1), (1, 1, 3, 1, 1, 4), (4, 9, 1, 1, 1, 1), (1, 1, 1, 1, 2, 18)])
@pytest.mark.parametrize("num_slices", [1, 2, 3, 6])
def test_every_slice_finds_a_place(sizes: tuple[int, ...], num_slices: int) -> None:
    if math.prod(sizes) % num_slices == 0:
        across, within = across_slices(sizes, num_slices)
        assert math.prod(across) == num_slices
        assert [a * w for a, w in zip(across, within, strict=True)] == list(sizes)


def test_slices_of_different_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"the slices have \[3, 4\] devices"):
        build_mesh(Mesh(fsdp=7), TWO_SLICES[:7])  # type: ignore[arg-type]


def test_the_table_says_what_a_device_holds(tiny_run: Callable[..., Run]) -> None:
    model = tiny_run().model
    lm, mesh = FunctionalLM(model), build_mesh(Mesh(fsdp=4, tensor=2), jax.devices())
    rows = parameter_table(lm, mesh)
    (embedding,) = [row for row in rows if row.shape == (model.vocab_size, model.dim) and "embed" in row.name]
    assert embedding.spec == PartitionSpec("tensor", "fsdp")
    assert embedding.bytes_per_device == 4 * (model.vocab_size // 2) * (model.dim // 4)
    with jax.set_mesh(mesh):
        params = jax.jit(lm.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, lm.abstract(mesh)))(
            jax.random.key(0)
        )
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    assert sum(row.bytes_per_device for row in rows) == held
    assert f"{lm.num_params:,} parameters on fsdp=4 x tensor=2" in totals(rows, mesh)


def test_only_widths_that_a_layer_has_are_to_be_divided(tiny_run: Callable[..., Run]) -> None:
    mesh, moe = build_mesh(Mesh(fsdp=4, tensor=2)), MoE(num_experts=4, experts_per_token=2, expert_dim=8)
    model = tiny_run().model.model_copy(update={"hidden_dim": 33, "block_layers": 2})
    check_fit(mesh, model.model_copy(update={"feed_forward": moe}), micro_batch=8, sequence_length=16)
    for feed_forward in (model.feed_forward, moe.model_copy(update={"dense_layers": (1,)})):
        one = model.model_copy(update={"feed_forward": feed_forward})
        with pytest.raises(UserError, match=r"mesh.tensor=2 does not divide model.hidden_dim=33"):
            check_fit(mesh, one, micro_batch=8, sequence_length=16)
