"""From what a step returns on the device to the numbers of `metrics.jsonl`."""

import math

import numpy as np

from looplm.metrics.routers import router_numbers

LIMITS = ("optim/max_loss", "optim/max_grad_norm")
"""Of a good update; absent while there is none."""
LOSS, TOKENS = "train/loss", "train/tokens"
OF_TOKENS = ("train/", "loop/", "gate/")
"""What is a mean over the scored tokens is named so."""


def readable(metrics: dict[str, np.ndarray], drawn: np.ndarray) -> dict[str, float]:
    """Names and values as they are logged.

    Arrays of the window (`train/loss_loop`, `gate/exit`, the loads of experts) become one number per loop that ran,
    numbered from 1 at the first loop of the step, and the expected depth. An update has no cosine with the one before
    where one loop ran.

    Args:
        metrics: host arrays: scalars, or (window,) per iteration of the trained window.
        drawn: (loops without gradient, loops with gradient) of the step; of every sequence (B, 2) where they differ,
            which leaves the numbers per loop out.
    """
    result = {name: value.item() for name, value in metrics.items() if value.ndim == 0}
    if not result.get(TOKENS, 1):
        # A mean over nothing is no number, and 0 would look like one. Every step has a loss for who reads the file.
        metrics = {name: value for name, value in metrics.items() if not name.startswith(OF_TOKENS)}
        result = {name: value for name, value in result.items() if name in metrics} | {LOSS: math.nan, TOKENS: 0}
    for name in LIMITS:
        if math.isinf(result.get(name, 0.0)):
            del result[name]
    if drawn.ndim == 2:
        return result | {"loop/num_loops": float(drawn.sum(axis=1).mean())} | router_numbers(metrics, None)
    detached, trained = (int(n) for n in drawn)
    result["loop/num_loops"] = detached + trained
    numbers = np.arange(detached + 1, detached + trained + 1)
    if detached + trained == 1:
        result.pop("loop/update_cosine", None)
    if (losses := metrics.get("train/loss_loop")) is not None:
        result |= {f"train/loss_loop_{t}": float(x) for t, x in zip(numbers, losses[-trained:], strict=True)}
    if (exits := metrics.get("gate/exit")) is not None:
        result |= {f"gate/exit_loop_{t}": float(x) for t, x in zip(numbers, exits[-trained:], strict=True)}
        result["gate/expected_depth"] = float(numbers @ exits[-trained:])
    return result | router_numbers(metrics, numbers.tolist())
