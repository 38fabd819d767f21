"""What a config leaves open, decided for the devices at hand: by its recipe, else a mesh by the size of the model."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from looplm.config.check import check
from looplm.config.load import override
from looplm.config.schema import Mesh, Run
from looplm.hardware import Device, find
from looplm.model.functional import FunctionalLM

STATE_BYTES = 12
"""Of a parameter: itself and two moments in float32."""
SHARE_OF_STATE = 1 / 8
"""Of a device's memory; the rest is for gathered weights, gradients and activations."""
TORUS_SPLIT = 16
"""Where neighbours are linked without a border, weights are split at least so far: a device sends 6 + 8/n bytes of a
parameter in a step (gathered once in bfloat16, reduced in float32, copied), so splitting on saves little."""
TILE = 128
"""Columns of a part: the TPU compiler all-reduces whole gradients where a part is narrower, or no multiple of it."""


def for_machine(run: Run, devices: Sequence[Any], given: Collection[str] = ()) -> Run:
    """Applies the config's first recipe for these devices, but for leaves that are `given` (by `--set`).

    A mesh is one choice: where any of its axes is given, none is taken from the recipe. Without a recipe, a mesh that
    is left at its defaults splits the weights of a known device as far as memory and links ask for, and copies beyond.
    """
    kind, count = devices[0].device_kind, len(devices)
    mesh_is_given = any(key.partition(".")[0] == "mesh" for key in given)
    for recipe in run.recipes:
        if recipe.num_devices == count and re.fullmatch(recipe.devices, kind):
            settings = {
                key: value
                for key, value in recipe.settings.items()
                if key not in given and not (mesh_is_given and key.startswith("mesh."))
            }
            return check(override(run, settings))
    device = find(kind)
    if device is None or count == 1 or mesh_is_given or run.mesh != Mesh():
        return run
    fsdp = split_of_weights(device, count, run.model.dim, FunctionalLM(run.model).num_params)
    return override(run, {"mesh.data": count // fsdp, "mesh.fsdp": fsdp})


def split_of_weights(device: Device, count: int, dim: int, num_params: int) -> int:
    """Over how many of `count` devices weights are split: the fewest that hold the state in their share of the memory
    and fill the fast links, or the most that divide the width, into whole tiles on a TPU."""
    tile = TILE if device.torus else 1
    parts = [n for n in range(1, count + 1) if count % n == 0 and dim % n == 0]
    parts = [n for n in parts if dim // n % tile == 0] or parts
    least = min(TORUS_SPLIT if device.torus else device.domain, parts[-1])
    room = device.memory_bytes * SHARE_OF_STATE
    enough = [n for n in parts if n >= least and num_params * STATE_BYTES / n <= room]
    return min(enough, default=parts[-1])
