"""What is said of memory is what the system and the devices count."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from looplm.train.memory_use import memory_use


def test_the_host_memory_is_that_of_the_system() -> None:
    kept = np.ones(8 * 10**6)
    used = memory_use(jax.local_devices())
    assert used.keys() == {"perf/host_memory_gb"}, "CPUs count none of their own"
    status = Path("/proc/self/status").read_text()
    kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert used["perf/host_memory_gb"] == pytest.approx(kib * 1024 / 1e9, rel=0.05)
    assert used["perf/host_memory_gb"] > kept.nbytes / 1e9


def test_the_fullest_device_is_told() -> None:
    devices: list[Any] = [
        SimpleNamespace(memory_stats=lambda stats=stats: stats)
        for stats in ({"peak_bytes_in_use": 2 * 10**9}, {"peak_bytes_in_use": 3 * 10**9}, None)
    ]
    assert memory_use(devices)["perf/memory_gb"] == 3.0
