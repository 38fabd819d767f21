"""How much memory a run has used so far, as the device and the system count it; `memory` says what it should need."""

import resource
import sys
from collections.abc import Iterable

import jax

GB = 1e9


def memory_use(devices: Iterable[jax.Device]) -> dict[str, float]:
    """Return the most that was used so far, in GB, by metric name.

    Args:
        devices: of this process; the fullest of them is told, and none where they do not count (CPUs).
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    known = [peak for peak in peaks if peak is not None]
    of_devices = {"perf/memory_gb": max(known) / GB} if known else {}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return of_devices | {"perf/host_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB}
