"""Compiles the training step of a run, and keeps what the compiler says about it."""

import math
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax

from looplm.compile.hlo import Module
from looplm.errors import UserError
from looplm.ops.rounds import LATER_ROUNDS
from looplm.train.flops import Flops, step_flops
from looplm.train.memory import Memory, memory_of
from looplm.train.program import Program

NEEDED = re.compile(r"memory required for HLO temporaries \(([\d.]+)([KMGT])\)")
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
FEWER = "give a device fewer tokens at a time: a larger data.accumulation_steps, or more devices"
"""What helps where the bytes that are missing are not known."""
MORE_VMEM = "let it use more of a TPU's vmem, LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=65536, or "
"""Of 128 MiB libtpu takes 16; compiled for v5e with libtpu 0.0.52 (docs/scaling.md)."""


class CompiledStep(NamedTuple):
    module: Module | None
    """None where the compiler stopped because the program does not fit."""
    memory: Memory
    flops: Flops
    """At the mean depth."""


def compile_step(program: Program) -> CompiledStep:
    """Lowers and compiles from shapes alone; allocates nothing.

    Raises UserError where the compiler gives up for lack of another memory than the device's main one.
    """
    traced = program.trace()
    detached = mean_detached_loops(program)
    flops, lowered = step_flops(traced.jaxpr).at(detached), traced.lower()
    # The text is taken from the compiler's own dump: programs of a libtpu that is newer than jaxlib cannot be read back
    # (`as_text` fails on asynchronous slices).
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            if (memory := memory_needed(program, error)) is not None:
                return CompiledStep(None, memory, flops)
            if OUT_OF_MEMORY not in str(error):
                raise
            kind = program.mesh.devices.flat[0].device_kind
            raise UserError(
                f"the compiler finds no room for the step on {kind} ({reason(error)}); {remedy(error)}"
            ) from error
        (path,) = Path(folder).glob("*train_step*after_optimizations.txt")
        text = path.read_text()
    return CompiledStep(Module(text, detached, never=LATER_ROUNDS), memory_of(compiled), flops)


def memory_needed(program: Program, error: Exception) -> Memory | None:
    """What the compiler said when it stopped because the step does not fit; None if that is not what it said."""
    if (needed := NEEDED.search(str(error))) is None:
        return None
    temporaries = int(float(needed[1]) * 1024 ** (" KMGT".index(needed[2])))
    return Memory(_bytes_per_device(program), temporaries, 0, 0)


def reason(error: Exception) -> str:
    """XLA's first words on what was too large; where the first line is a heading, with the second."""
    said = str(error).partition(OUT_OF_MEMORY)[2].removeprefix(": ").strip().splitlines() or [OUT_OF_MEMORY]
    return " ".join(said[: 2 if said[0].endswith(":") else 1])[:200]


def remedy(error: Exception) -> str:
    return f"{MORE_VMEM}{FEWER}" if "vmem" in str(error) else FEWER


def mean_detached_loops(program: Program) -> float:
    """Mean number of loops before the gradient's window: drawn for every step, an argument of the program."""
    return max(0.0, program.run.loop.num_loops - program.depths.window)


def _bytes_per_device(program: Program) -> int:
    """Of the state."""
    leaves = jax.tree.leaves(program.abstract_state())
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
