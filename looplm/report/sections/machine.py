"""What the run asked of its machine: throughput, memory, and where the wall-clock went."""

from looplm.metrics.timing import PARTS, goodput
from looplm.report import curves, pieces
from looplm.report.curves import Panel
from looplm.report.found import Found

PANELS = (
    Panel("perf/tokens_per_s", "Throughput", "tokens per second", from_zero=True),
    Panel("perf/tflops_per_device", "Model FLOPs of a device", "TFLOP/s", from_zero=True),
    Panel("perf/mfu", "Share of the device's peak (MFU)", from_zero=True),
    Panel("perf/memory_gb", "Device memory, most so far", "GB", from_zero=True),
    Panel("perf/host_memory_gb", "Host memory, most so far", "GB", from_zero=True),
    Panel("data/wait_s", "Waiting for data", "seconds a step", from_zero=True),
)
GOODPUT = Panel("goodput/fraction", "Goodput so far", "share of the wall-clock", from_zero=True)


def machine(found: Found) -> str:
    """Return the section; nothing for a model that was not trained here."""
    shown = curves.figures(found.history, PANELS)
    if not shown and not found.seconds:
        return ""
    parts = curves.figures(found.history, [GOODPUT]) + ([_time(found)] if found.seconds else [])
    spent = pieces.pair(*parts) if len(parts) == 2 else pieces.grid(*parts)
    return pieces.section("Throughput, memory, goodput", pieces.grid(*shown), spent)


def _time(found: Found) -> str:
    seconds = found.seconds
    total = sum(seconds.values())
    parts = sorted(((value, part) for part, value in seconds.items() if value), reverse=True)
    rows = [(PARTS[part], pieces.number(value, 1), pieces.percent(value / max(total, 1e-9))) for value, part in parts]
    rows.append(("all", pieces.number(total, 1), "100.0 %"))
    caption = f"Goodput: {goodput(seconds):.1%}. Where the wall-clock went, over all starts of the run."
    return pieces.table(("part", "seconds", "share"), rows, caption=caption, marked=len(rows) - 1)
