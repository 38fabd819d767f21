"""Somebody wants the machine back: SIGTERM, or SIGUSR1 as SLURM sends it some time before the limit of a job.

The run ends after a step that all processes agree on, without a service or a barrier: with every step each process
puts in whether it was asked to stop, the sum is computed where the step is, and read one step later by all alike.
JAX's own preemption service knows SIGTERM only, and takes it away from Python.
"""

import signal
import threading
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Listens between `with`; outside of the main thread nothing can listen, and nothing is heard."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self.heard: signal.Signals | None = None
        self._several = jax.process_count() > 1
        self._before: jax.Array | None = None
        self._newest: jax.Array | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        if self._several:
            everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            values = (np.full(mesh.size, value, np.int32) for value in (0, 1))
            self._answers = [jax.make_array_from_callback(v.shape, everywhere, v.__getitem__) for v in values]
            alike = NamedSharding(mesh, PartitionSpec())
            with jax.set_mesh(mesh):
                self._sum = jax.jit(jnp.sum, out_shardings=alike).lower(self._answers[0]).compile()

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = signal.Signals(number)

    def ask(self) -> None:
        """To be called with every step, by all processes: counts the devices whose processes were asked to stop."""
        if self._several:
            self._before, self._newest = self._newest, self._sum(self._answers[self.heard is not None])

    def agreed(self) -> bool:
        """Whether to stop, for all processes alike: by the count of the step before, which is there already."""
        if not self._several:
            return self.heard is not None
        return self._before is not None and bool(jax.device_get(self._before))

    @property
    def reason(self) -> str:
        return self.heard.name if self.heard else "a signal to another process"
