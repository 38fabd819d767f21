"""Marks in a traced program by which FLOPs are counted (`train/flops.py`): how much of it is done, how much is needed.

Whoever computes something that is not done as often as the program's text says, or computes more than its result needs,
says so where it does. The marks are named scopes: they change no operation, and profilers show them.
"""

from contextlib import AbstractContextManager

import jax

TEACHER = "of_the_teacher"
"""Around the pass of a model that is learned from."""
DETACHED = "detached_loops"
"""What is done in every loop before the gradient's window; a step is told how many there are."""
WINDOW = "window_of_loops"
"""What is done for every loop of the gradient's window, of which a shallow step skips some."""
MICRO_BATCHES = "micro_batches"
"""The loop over the micro-batches of a step."""
OPTIMIZER = "optimizer"
"""What turns a gradient into new weights."""
RECOMPUTED = "rematted_computation"
"""JAX's own name for what a backward pass computes again."""
DONE, NEEDED, NEEDED_BACK = "done", "needed", "needed_back"
BACKWARD = "transpose("
"""JAX's own name for what is in a backward pass."""


def done(times: float) -> AbstractContextManager:
    """Mark what is done so many times on average where the program says once: the body of a loop whose turns depend on
    data, or the work on a buffer that is not always full."""
    return jax.named_scope(f"{DONE}_{times:.9g}")


def needed(share: float) -> AbstractContextManager:
    """Mark what is computed as a whole while only this share of it is looked at, the rest being masked."""
    return jax.named_scope(f"{NEEDED}_{share:.9g}")


def needed_back(share: float) -> AbstractContextManager:
    """Mark what has a backward pass of which only this share is needed, the rest being computed again."""
    return jax.named_scope(f"{NEEDED_BACK}_{share:.9g}")
