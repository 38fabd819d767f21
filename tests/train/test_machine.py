"""What is left open is decided for the devices at hand, and nothing that was given is touched."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from looplm.config.schema import Mesh, Recipe, Run
from looplm.errors import UserError
from looplm.hardware import find
from looplm.train.machine import for_machine, split_of_weights

RECIPES = (
    Recipe(devices="TPU v5p", num_devices=8, settings={"mesh.fsdp": 4, "mesh.data": 2, "loop.remat": "names"}),
    Recipe(devices="TPU v5p|TPU v5", num_devices=8, settings={"loop.remat": "offload"}),
)


def machine(kind: str, count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(device_kind=kind)] * count


@pytest.fixture
def run(tiny_run: Callable[..., Run]) -> Run:
    return tiny_run().model_copy(update={"recipes": RECIPES})


def test_the_first_recipe_of_the_kind_and_number_of_devices_is_applied(run: Run) -> None:
    first = for_machine(run, machine("TPU v5p", 8))
    assert (first.mesh, first.loop.remat) == (Mesh(data=2, fsdp=4), "names")
    assert for_machine(run, machine("TPU v5", 8)).loop.remat == "offload"
    assert for_machine(run, machine("TPU v5p", 4)).loop.remat == run.loop.remat


def test_what_is_given_stays(run: Run) -> None:
    given = run.model_copy(update={"mesh": Mesh(data=8, fsdp=1)})
    kept = for_machine(given, machine("TPU v5p", 8), {"mesh.data", "mesh.fsdp"})
    assert (kept.mesh, kept.loop.remat) == (given.mesh, "names")
    assert for_machine(run, machine("TPU v5p", 8), {"loop.remat"}).loop.remat == run.loop.remat


def test_a_recipe_of_a_wrong_leaf_is_refused(run: Run) -> None:
    wrong = Recipe(devices="TPU v5p", num_devices=8, settings={"mesh.fdsp": 8})
    with pytest.raises(UserError, match="fdsp"):
        for_machine(run.model_copy(update={"recipes": (wrong,)}), machine("TPU v5p", 8))


def test_without_a_recipe_a_mesh_at_its_defaults_is_chosen_on_known_devices(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run()
    assert for_machine(run, machine("NVIDIA H200", 32)).mesh == Mesh(data=4, fsdp=8)
    assert for_machine(run, machine("cpu", 8)).mesh == Mesh()
    chosen = tiny_run(**{"mesh.data": 2})
    assert for_machine(chosen, machine("NVIDIA H200", 32)).mesh == chosen.mesh


@pytest.mark.parametrize(
    ("kind", "count", "dim", "num_params", "split"),
    [
        ("NVIDIA H200", 64, 2048, 1.4e9, 8),  # one domain of fast links holds the state
        ("NVIDIA H200", 64, 8192, 70e9, 64),  # two or more nodes have to share it
        ("TPU v5p", 4096, 2048, 1.4e9, 16),  # splitting on would send as much
        ("TPU v5p", 64, 8192, 400e9, 64),
        ("TPU v5 lite", 256, 2048, 7e9, 16),  # memory asks for more, but no part may be narrower than a tile
        ("TPU v5 lite", 64, 5280, 3.5e9, 32),  # no part is whole tiles
    ],
)
def test_weights_are_split_as_far_as_memory_and_links_ask_for(
    kind: str, count: int, dim: int, num_params: float, split: int
) -> None:
    device = find(kind)
    assert device is not None
    assert split_of_weights(device, count, dim, int(num_params)) == split
