"""Options of a generation as a user gives them, looked at before anything is computed."""

import math

from looplm.errors import UserError
from looplm.infer.items import Contrast
from looplm.infer.sampling import Sampling


def make_sampling(
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> Sampling:
    """Make how tokens are drawn; a temperature of 0 takes the likeliest. Raises UserError for a value out of range."""
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature} must be at least 0, which takes the likeliest token")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1, which takes the likeliest token")
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise UserError(f"{name}={share} must be above 0 and at most 1; leave it out to draw from all tokens")
    if repetition_penalty is not None and not 0 < repetition_penalty < math.inf:
        raise UserError(f"repetition_penalty={repetition_penalty} must be above 0; 1 changes nothing")
    if temperature == 0:  # the likeliest token is in every choice of the likeliest
        top_k = top_p = min_p = None
    return Sampling(temperature or None, top_k, top_p, min_p, repetition_penalty)


def parse_contrast(text: str | None, num_loops: int) -> Contrast | None:
    """Read `LOOP:WEIGHT`: logits of the last loop, away from those after LOOP loops. None stays None.

    Raises UserError for anything else, or unless 1 <= LOOP < num_loops.
    """
    if text is None:
        return None
    loop, _, weight_text = text.partition(":")
    try:
        weight = float(weight_text)
    except ValueError:
        weight = math.nan
    if not loop.isdecimal() or not math.isfinite(weight):
        raise UserError(f"contrast {text!r} is not known; use LOOP:WEIGHT, e.g. 1:0.5")
    if not 1 <= int(loop) < num_loops:
        raise UserError(f"contrast {text!r}: loop {loop} must be one of the first {num_loops - 1} of {num_loops}")
    return Contrast(int(loop), weight)


def check_step_size(step_size: float) -> float:
    """Return it. Raises UserError unless it is in (0, 2)."""
    if not 0 < step_size < 2:
        raise UserError(f"step_size={step_size} must be above 0 and below 2; 1 goes all of the way to the new state")
    return step_size
