"""What becomes of updates that the guard did not make: each is noted with its batch, and many in a row end the run.

Steps without a label are noted when there are 1, 2, 4, 8, ... of them: there may be more of them than of others. That
there are some, and that high values come so often that the guard takes them for hard data, is said once a run.
"""

import math
from collections.abc import Mapping

from rich.console import Console

from looplm.config.schema import Guard
from looplm.data.mixture import Mixture
from looplm.metrics.events import Events, finite
from looplm.train.metrics import TOKENS
from looplm.train.notes import Notes
from looplm.train.rewind import Batches

IN_A_ROW = "optim/skipped_in_a_row"
UNLABELLED, HARD, NEW_LEVELS = "optim/unlabelled", "optim/hard", "optim/new_levels"
NO_LABEL = (
    f"no token of the batch has a label, so nothing was changed, nor did the learning rate's schedule move; "
    f"{UNLABELLED} counts such steps. Larger batches (data.batch_tokens), a longer data.sequence_length or shorter "
    "prompts make them rare"
)
COMES_OFTEN = (
    f"losses or gradients far above the usual ones come so often that they are taken for hard data; {HARD} counts "
    "such updates, and optim.guard.max_loss or max_grad_norm refuses them"
)
NEW_LEVEL = (
    "losses or gradients stayed far above the usual ones, and the weights cannot leave that place while nothing is "
    "changed; the guard takes them for the usual level and goes on. If the loss does not come down again, start anew "
    "from an earlier checkpoint with optim.guard.rewinds=1 or a lower optim.learning_rate"
)
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

    def __init__(
        self, config: Guard, mixture: Mixture, batches: Batches, events: Events, notes: Notes, console: Console
    ):
        self.config, self.mixture, self.batches, self.events = config, mixture, batches, events
        self.notes, self.console = notes, console

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises Spoiled when `optim.guard.stop_after` updates in a row were not made."""
        if not metrics[TOKENS]:
            self._look_at_unlabelled(step, int(metrics[UNLABELLED]))
            return
        if metrics[HARD]:
            self.notes.tell(HARD, step, COMES_OFTEN)
        if number := int(metrics[NEW_LEVELS]):
            self.notes.tell(f"{NEW_LEVELS} {number}", step, NEW_LEVEL)
        if not metrics[IN_A_ROW]:
            return
        reason, batch = why(metrics), self.batches.of(step)
        windows = self.mixture.numbers(batch)
        self.events.note(
            "skipped",
            step=step,
            reason=reason,
            loss=finite(metrics["train/loss"]),
            grad_norm=finite(metrics["train/grad_norm"]),
            batch=batch,
            windows=windows,
        )
        told = "; ".join(f"windows {_few(numbers)} of {name}" for name, numbers in windows.items())
        self.console.print(f"step {step}: update not made, {reason}; batch {batch}: {told}")
        if metrics[IN_A_ROW] >= self.config.stop_after:
            raise Spoiled(step, f"the last {metrics[IN_A_ROW]:.0f} updates were not made ({reason})")

    def _look_at_unlabelled(self, step: int, so_far: int) -> None:
        self.notes.tell(UNLABELLED, step, NO_LABEL)
        if so_far.bit_count() == 1:
            self.events.note("unlabelled", step=step, so_far=so_far)


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


def is_lone_spike(metrics: Mapping[str, float]) -> bool:
    """Whether one bad update alone was not made, and its values are finite: no sign that the weights are spoilt."""
    return metrics[IN_A_ROW] == 1 and all(math.isfinite(metrics.get(name, math.nan)) for name in VALUES)


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
