"""What is left of a mesh, and of how many processes a group can be."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from looplm.config.schema import Mesh, Run
from looplm.train.fewer import for_those_left, group_sizes, smaller_mesh


@pytest.mark.parametrize(
    ("written", "count", "left"),
    [
        (Mesh(data=2, fsdp=4), 4, Mesh(data=1, fsdp=4)),
        (Mesh(data=2, fsdp=4), 6, Mesh(data=3, fsdp=2)),
        (Mesh(data=3, fsdp=1), 2, Mesh(data=2, fsdp=1)),
        (Mesh(replica=2, data=2, fsdp=2), 4, Mesh(replica=1, data=2, fsdp=2)),
        (Mesh(data=2, fsdp=2, tensor=2), 4, Mesh(data=1, fsdp=2, tensor=2)),
        (Mesh(data=2, fsdp=2, tensor=2), 3, Mesh(data=2, fsdp=2, tensor=2)),  # refused, as at a start
        (Mesh(data=2), 6, Mesh(data=2)),  # fsdp takes the rest
        (Mesh(data=2), 3, Mesh(data=1)),
        (Mesh(data=4), 6, Mesh(data=2)),
    ],
)
def test_the_axes_that_split_batches_give_way(written: Mesh, count: int, left: Mesh) -> None:
    assert smaller_mesh(written, count) == left


def devices(count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(device_kind="cpu")] * count


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [1, 2, 4]),  # 8 sequences, of width 16
        ({"mesh.data": 2, "mesh.fsdp": 2}, [1, 2, 4]),
        ({"mesh.data": -1, "mesh.fsdp": 1, "data.batch_tokens": 192}, [1, 2, 3, 4]),
        ({"mesh.data": 2, "mesh.tensor": 2, "mesh.fsdp": 1}, [2, 4]),
    ],
)
def test_groups_are_as_large_as_mesh_and_batch_divide(
    changes: dict, sizes: list[int], tiny_run: Callable[..., Run]
) -> None:
    assert list(group_sizes(tiny_run(**changes), devices(4), (), processes=4, count=4)) == sizes


def test_a_whole_job_keeps_a_mesh_that_does_not_fit(tiny_run: Callable[..., Run]) -> None:
    """It is a mistake, and refused as one."""
    run = tiny_run(**{"mesh.data": 3, "mesh.fsdp": 1})
    assert for_those_left(run, devices(4), (), whole=4).mesh == run.mesh
    assert for_those_left(run, devices(2), (), whole=3).mesh == Mesh(data=2, fsdp=1)
