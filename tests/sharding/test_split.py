"""How sequences lie on devices, and when their keys go around."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from looplm.config.schema import Run
from looplm.sharding.rules import MESH_AXES
from looplm.sharding.split import Split, split_of


def test_in_zigzag_order_every_device_has_an_early_and_a_late_chunk() -> None:
    split = Split(3, zigzag=True, ring=False)
    assert split.order(12).tolist() == [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]
    x_BT = jnp.arange(24).reshape(2, 12)
    np.testing.assert_array_equal(split.in_order(x_BT[:, split.order(12)]), x_BT)


@pytest.mark.parametrize(
    ("length", "changes", "ring"),
    [
        (131_072, {}, True),  # 2.1 GB of the 17 of a TPU v5e
        (65_536, {}, False),
        (131_072, {"model.num_kv_heads": 8}, False),
        (131_072, {"sharding.keys": "gathered"}, False),
        (131_072, {"model.positions": "relative"}, False),
        (4096, {"sharding.keys": "ring"}, True),
    ],
)
def test_keys_go_around_where_those_of_a_layer_take_an_eighth_of_the_memory(
    tiny_run: Callable[..., Run], length: int, changes: dict, ring: bool
) -> None:
    sizes = {
        "model.num_heads": 16,
        "model.head_dim": 128,
        "data.sequence_length": length,
        "data.batch_tokens": 2 * length,
    }
    run = tiny_run(**sizes | {"mesh.context": 16, "mesh.fsdp": 2} | changes)
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=None, platform="tpu")
    shape = tuple({"fsdp": 2, "context": 16}.get(axis, 1) for axis in MESH_AXES)
    split = split_of(run, AbstractMesh(shape, MESH_AXES, abstract_device=device))
    assert split == Split(16, zigzag=True, ring=ring)
