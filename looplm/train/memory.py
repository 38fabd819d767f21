"""What a compiled step holds on a device, as the compiler counts it: known before anything is allocated."""

import math
from typing import Any, NamedTuple

import jax

from looplm.hardware import GIB, Device

RESERVED = 0.016
"""Share of a device's memory that a program does not get: 16 GiB of a TPU v5e are 15.75 for XLA."""


class Memory(NamedTuple):
    """Bytes that a device holds while a step runs."""

    arguments: int
    """State and batch; the new state takes the place of the old one."""
    temporaries: int
    """Gathered weights, gradients, activations, logits."""
    outputs: int
    """What is returned and takes the place of nothing."""
    code: int

    @property
    def total(self) -> int:
        return sum(self)


def memory_of(compiled: jax.stages.Compiled) -> Memory:
    analysis: Any = compiled.memory_analysis()
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        outputs=max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        code=analysis.generated_code_size_in_bytes,
    )


def bytes_of(tree: Any) -> int:
    """Of arrays, or abstract ones with shardings, on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def learning_line(num_learning: int, num_params: int, optimizer_bytes: int) -> str:
    """One line: how many parameters are trained, and what the optimizer holds for them on a device."""
    share = "all parameters" if num_learning == num_params else f"{num_learning:,} of {num_params:,} parameters"
    return f"training {share}, with {gib(optimizer_bytes)} of optimizer state on every device"


def available_bytes(device: Device) -> int:
    """What a program gets of a device."""
    return int(device.memory_bytes * (1 - RESERVED))


def memory_line(memory: Memory, device: Device | None) -> str:
    """One line: what a step holds on a device, and what is left."""
    parts = f"{gib(memory.arguments)} state and batch, {gib(memory.temporaries)} temporaries"
    line = f"memory: {gib(memory.total)} on every device ({parts})"
    if device is None:
        return line
    left = available_bytes(device) - memory.total
    return f"{line}; {gib(abs(left))} {'free' if left >= 0 else 'too much'} on {device.name}"


def gib(count: float) -> str:
    """As people read it."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.2f} MiB"
