"""A device ran out of memory: one message with what would help, instead of XLA's."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from looplm.compile.compiled import OUT_OF_MEMORY, memory_needed, reason, remedy
from looplm.compile.remedies import remedies
from looplm.errors import UserError
from looplm.hardware import find
from looplm.train.memory import Memory, available_bytes, gib, memory_of
from looplm.train.trainer import Trainer


@contextmanager
def explained(trainer: Trainer) -> Iterator[None]:
    """Turns XLA's lack of memory, in compiling or running, into a UserError with the cheapest remedies."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise UserError(explain(trainer, error)) from error


def explain(trainer: Trainer, error: Exception) -> str:
    """What is needed, what there is, and the cheapest settings that need less, each with the bytes it would need."""
    program, (device, *_) = trainer.program, trainer.mesh.local_devices
    known, stats = find(device.device_kind), device.memory_stats() or {}
    available = stats.get("bytes_limit") or (available_bytes(known) if known else None)
    memory = _memory(trainer, error)
    what = f"{device.device_kind} is out of memory"
    if memory is not None:
        what += f": the step needs {gib(memory.total)}" + (f" of {gib(available)}" if available else "")
    found = remedies(program, memory, available or 0) if memory is not None else []
    told = "; ".join(
        f"{' '.join(f'--set {setting}' for setting in one.settings)} (about {gib(one.predicted_bytes)}, {one.costs})"
        for one in found
    )
    return f"{what} ({reason(error)}); " + (f"the cheapest remedies: {told}" if told else remedy(error))


def _memory(trainer: Trainer, error: Exception) -> Memory | None:
    """Of the step, from the compiler or from its refusal."""
    if (compiled := vars(trainer).get("compiled")) is not None:
        return memory_of(compiled.step)
    return memory_needed(trainer.program, error)
