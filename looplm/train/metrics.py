"""From what a step returns on the device to the numbers of `metrics.jsonl`."""

import math

import numpy as np

from looplm.metrics.routers import router_numbers
from looplm.metrics.step import LoopSums, StepOutput

LIMITS = ("optim/max_loss", "optim/max_grad_norm")
"""Of a good update; absent while there is none."""
LOSS, TOKENS = "train/loss", "train/tokens"


def readable(output: StepOutput, drawn: np.ndarray) -> dict[str, float]:
    """Names and values as they are logged.

    Arrays of the window become one number per loop that ran, numbered from 1 at the first loop of the step, and the
    expected depth. An update has no cosine with the one before where one loop ran.

    Args:
        output: what a step returned, on the host.
        drawn: (loops without gradient, loops with gradient) of the step; of every sequence (B, 2) where they differ,
            which leaves the numbers per loop out.
    """
    means, loops = {name: value.item() for name, value in output.means.items()}, output.loops
    if not output.tokens:
        # A mean over nothing is no number, and 0 would look like one. Every step has a loss for who reads the file.
        means, loops = {LOSS: math.nan}, LoopSums()
    numbers = {name: value.item() for name, value in output.numbers.items()}
    limits = {name for name in LIMITS if math.isinf(numbers.get(name, 0.0))}
    result = means | {name: value for name, value in numbers.items() if name not in limits}
    result |= {name: float(total / count) for name, (total, count) in output.rows.items() if count}
    result[TOKENS] = output.tokens.item()
    if drawn.ndim == 2:
        result["loop/num_loops"] = float(drawn.sum(axis=1).mean())
        return result | router_numbers(output.routers, None)
    detached, trained = (int(n) for n in drawn)
    result["loop/num_loops"] = detached + trained
    if detached + trained == 1:
        result.pop("loop/update_cosine", None)
    ran = np.arange(detached + 1, detached + trained + 1)
    if loops.loss_R is not None:
        result |= {f"train/loss_loop_{t}": float(x) for t, x in zip(ran, loops.loss_R[-trained:], strict=True)}
    if loops.exit_R is not None:
        result |= {f"gate/exit_loop_{t}": float(x) for t, x in zip(ran, loops.exit_R[-trained:], strict=True)}
        result["gate/expected_depth"] = float(ran @ loops.exit_R[-trained:])
    return result | router_numbers(output.routers, ran.tolist())
