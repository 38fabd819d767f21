"""Compiles the training step of a run, and keeps what the compiler says about it."""

import math
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax

from looplm.compile.hlo import Module
from looplm.train.memory import Memory, memory_of
from looplm.train.program import Program

NEEDED = re.compile(r"memory required for HLO temporaries \(([\d.]+)([KMGT])\)")


class CompiledStep(NamedTuple):
    module: Module | None
    """None where the compiler stopped because the program does not fit."""
    memory: Memory


def compile_step(program: Program) -> CompiledStep:
    """Lowers and compiles from shapes alone; allocates nothing."""
    lowered = program.lower()
    # The text is taken from the compiler's own dump: programs of a libtpu that is newer than jaxlib cannot be read back
    # (`as_text` fails on asynchronous slices).
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            if (memory := memory_needed(program, error)) is None:
                raise
            return CompiledStep(None, memory)
        (path,) = Path(folder).glob("*train_step*after_optimizations.txt")
        text = path.read_text()
    return CompiledStep(Module(text, unknown_trips=mean_detached_loops(program)), memory_of(compiled))


def memory_needed(program: Program, error: Exception) -> Memory | None:
    """What the compiler said when it stopped because the step does not fit; None if that is not what it said."""
    if (needed := NEEDED.search(str(error))) is None:
        return None
    temporaries = int(float(needed[1]) * 1024 ** (" KMGT".index(needed[2])))
    return Memory(_bytes_per_device(program), temporaries, 0, 0)


def mean_detached_loops(program: Program) -> float:
    """Mean number of loops before the gradient's window: drawn for every step, an argument of the program."""
    return max(0.0, program.run.loop.num_loops - program.depths.window)


def _bytes_per_device(program: Program) -> int:
    """Of the state."""
    leaves = jax.tree.leaves(program.abstract_state())
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
