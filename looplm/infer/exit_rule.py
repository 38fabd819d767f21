"""The text form of an exit rule, as the command line and `lm.generate` take it."""

from looplm.errors import UserError


def parse_exit(text: str | None, *, has_gate: bool) -> float | None:
    """`gate:Q` -> Q: a token leaves at the first loop whose cumulative exit probability reaches Q. None -> None.

    Raises UserError for another rule, a Q outside (0, 1], or a model without a gate.
    """
    if text is None:
        return None
    rule, _, value = text.partition(":")
    if rule != "gate":
        raise UserError(f"exit rule {text!r} is not known; use gate:Q with Q in (0, 1], e.g. gate:0.9")
    try:
        threshold = float(value)
    except ValueError:
        threshold = -1.0
    if not 0 < threshold <= 1:
        raise UserError(f"exit rule {text!r}: the threshold {value!r} is not in (0, 1]; use e.g. gate:0.9")
    if not has_gate:
        raise UserError(f"exit rule {text!r} needs an exit gate, and this model has none; use --loops N")
    return threshold
