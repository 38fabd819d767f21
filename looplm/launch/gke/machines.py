"""What GKE calls its machines, and how many hosts a slice has.

Source: the tables of "Plan TPUs in GKE" and "About GPUs in GKE" in Google's documentation.
"""

import math
from typing import NamedTuple

from looplm.errors import UserError


class Machine(NamedTuple):
    """One kind of accelerator."""

    label: str
    """The value of the node label that selects it."""
    chips: int
    """Of a host in a slice of several hosts; GPUs of a node."""
    dims: int = 0
    """Of a topology; 0 for GPUs."""
    lone_chips: tuple[int, ...] = ()
    """Slices of so many chips are one host."""


TPUS = {
    "v5e": Machine("tpu-v5-lite-podslice", 4, 2, (1, 4, 8)),
    "v5p": Machine("tpu-v5p-slice", 4, 3, (4,)),
    "v6e": Machine("tpu-v6e-slice", 4, 2, (1, 4, 8)),
    "tpu7x": Machine("tpu7x", 4, 3, (4,)),
}
GPUS = {
    "a100": Machine("nvidia-tesla-a100", 8),
    "a100-80gb": Machine("nvidia-a100-80gb", 8),
    "h100": Machine("nvidia-h100-80gb", 8),
    "h100-mega": Machine("nvidia-h100-mega-80gb", 8),
    "h200": Machine("nvidia-h200-141gb", 8),
    "b200": Machine("nvidia-b200", 8),
}
EXAMPLES = {2: "4x4", 3: "2x2x4"}


class Hosts(NamedTuple):
    """Of one slice, or all GPU nodes."""

    number: int
    chips: int
    """Of each of them."""


def hosts_of(accelerator: str, topology: str) -> Hosts:
    """Count the hosts of a slice from its shape. Raises UserError for one that is no shape of this kind."""
    tpu = TPUS[accelerator]
    sides = topology.split("x")
    if len(sides) != tpu.dims or not all(side.isdigit() and int(side) for side in sides):
        raise UserError(
            f"topology={topology} is no shape of {accelerator}, which has {tpu.dims} sides; "
            f"use e.g. {EXAMPLES[tpu.dims]}"
        )
    chips = math.prod(map(int, sides))
    if chips in tpu.lone_chips:
        return Hosts(1, chips)
    if chips % tpu.chips:
        raise UserError(
            f"topology={topology} has {chips} chips, which no whole hosts of {accelerator} have ({tpu.chips} each, or "
            f"one host of {' or '.join(map(str, tpu.lone_chips))}); use e.g. {EXAMPLES[tpu.dims]}"
        )
    return Hosts(chips // tpu.chips, tpu.chips)
