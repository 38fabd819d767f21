"""What becomes of updates that the guard did not make: each is noted with its batch, and many in a row end the run."""

import math
from collections.abc import Mapping

from rich.console import Console

from looplm.config.schema import Guard
from looplm.data.mixture import Mixture
from looplm.metrics.events import Events, finite
from looplm.train.rewind import Batches

IN_A_ROW = "optim/skipped_in_a_row"
VALUES = {"train/loss": ("loss", "optim/max_loss"), "train/grad_norm": ("gradient norm", "optim/max_grad_norm")}
"""What is judged, and its limit where it has one."""
SHOWN = 8
"""Windows on the console; the events hold all."""


class Spoiled(Exception):
    """Too many updates in a row were not made."""

    def __init__(self, step: int, reason: str):
        super().__init__(reason)
        self.step, self.reason = step, reason


class SkippedUpdates:
    """Looks at the metrics of every step, one step late."""

    def __init__(self, config: Guard, mixture: Mixture, batches: Batches, events: Events, console: Console):
        self.config, self.mixture, self.batches, self.events, self.console = config, mixture, batches, events, console

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises Spoiled when `optim.guard.stop_after` updates in a row were not made."""
        if not metrics[IN_A_ROW]:
            return
        reason, batch = why(metrics), self.batches.of(step)
        windows = self.mixture.numbers(batch)
        self.events.note(
            "skipped", step=step, reason=reason, loss=finite(metrics["train/loss"]),
            grad_norm=finite(metrics["train/grad_norm"]), batch=batch, windows=windows,
        )  # fmt: skip
        told = "; ".join(f"windows {_few(numbers)} of {name}" for name, numbers in windows.items())
        self.console.print(f"step {step}: update not made, {reason}; batch {batch}: {told}")
        if metrics[IN_A_ROW] >= self.config.stop_after:
            raise Spoiled(step, f"the last {metrics[IN_A_ROW]:.0f} updates were not made ({reason})")


def why(metrics: Mapping[str, float]) -> str:
    """Which value was bad, and what it should have been."""
    found = []
    for name, (called, limit) in VALUES.items():
        value = metrics[name]
        if not math.isfinite(value):
            found.append(f"{called} {value} is not finite")
        elif value > metrics.get(limit, math.inf):
            found.append(f"{called} {value:.4g} is above {metrics[limit]:.4g}")
    return " and ".join(found)


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
