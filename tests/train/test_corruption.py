"""A device that computes or remembers wrongly is found and named; sound devices are not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from looplm.config.schema import Run
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.sharding.mesh import build_mesh
from looplm.train.corruption import CorruptionCheck
from looplm.train.program import Program
from looplm.train.state import TrainState


class Setting(NamedTuple):
    check: CorruptionCheck
    state: TrainState
    batch: dict[str, jax.Array]
    drawn: jax.Array

    def faults(self, params: Any = None, batches: Any = None) -> list[str]:
        """batches: of the first and of the second computation."""
        gradient, given = self.check._gradient, iter(batches or (self.batch, self.batch))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.check, "_gradient", lambda params, _, *rest: gradient(params, next(given), *rest))
            state = replace(self.state, params=params or self.state.params)
            digests = self.check.start(state, self.batch, self.drawn)
        return self.check.faults(digests)


@pytest.fixture(scope="module")
def setting(tiny_run: Callable[..., Run]) -> Setting:
    """Eight devices: the batch is split over all, most weights over the last two, so there are four copies of each."""
    run = tiny_run(**{"mesh.data": 4, "mesh.fsdp": 2})
    program = Program(run, build_mesh(run.mesh))
    check = CorruptionCheck(program)
    rows = next(train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0))
    drawn = program.depths.draw(0)
    return Setting(check, program.create_state(), program.batch.place(rows, drawn), program.batch.place_drawn(drawn))


def with_changed_copy(array: jax.Array, device: jax.Device, change: Callable[[np.ndarray], None]) -> jax.Array:
    """The same array, but what one device holds is changed."""
    parts = []
    for shard in array.addressable_shards:
        part = np.array(shard.data)
        if shard.device == device:
            change(part)
        parts.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def flip_a_bit(part: np.ndarray) -> None:
    part.view(np.uint32).reshape(-1)[part.size // 2] ^= 1


def test_sound_devices_are_left_alone(setting: Setting) -> None:
    assert setting.faults() == []


@pytest.mark.parametrize("number", [0, 5])
def test_a_device_that_computes_wrongly_once_is_named(setting: Setting, number: int) -> None:
    device = setting.check.mesh.devices.flat[number]

    def change(part: np.ndarray) -> None:
        part[..., 3] = (part[..., 3] + 1) % 100

    second = setting.batch._replace(tokens=with_changed_copy(setting.batch.tokens, device, change))
    assert setting.faults(batches=(setting.batch, second)) == [
        f"computed one gradient twice with different bits: cpu {device.id} (process 0)"
    ]


def test_a_device_with_one_wrong_bit_in_a_weight_is_named_with_the_weight(setting: Setting) -> None:
    leaves, structure = jax.tree.flatten(setting.state.params)
    device = setting.check.mesh.devices.flat[6]
    leaves[2] = with_changed_copy(leaves[2], device, flip_a_bit)
    path = setting.check._paths[2]
    # The gradient is the same both times: the wrong weight is there both times.
    assert setting.faults(jax.tree.unflatten(structure, leaves)) == [
        f"copies of {path} differ: cpu {device.id} (process 0)"
    ]


def test_of_two_copies_that_differ_both_are_named(setting: Setting) -> None:
    spec = setting.check._specs[2]
    digests_N = np.array([1, 2, 1, 2, 7, 2, 7, 2], np.uint32)
    assert list(setting.check._odd_copies(spec, digests_N)) == ([0, 2, 4, 6] if any(spec) else list(range(8)))
