"""How a task wants a text to be written: its `generation_kwargs`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from looplm.errors import UserError

MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the number of tokens; the first that is there holds."""
DEFAULT_MAX_TOKENS = 256
SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "seed")


class Asked(NamedTuple):
    """Options of `LoadedLM.generate`."""

    max_tokens: int
    stop: tuple[str, ...]
    temperature: float
    others: tuple[tuple[str, Any], ...]
    """Those of SAMPLING that were given."""


def read_asked(given: Mapping[str, Any], max_length: int) -> Asked:
    """Read `generation_kwargs`. max_length: tokens of prompt and answer together.

    Raises UserError for one that is not known, or no room for a prompt.
    """
    unknown = sorted(set(given) - {*MAX_TOKENS, *SAMPLING, "until", "do_sample", "temperature"})
    if unknown:
        raise UserError(
            f"generation_kwargs hold {unknown[0]}={given[unknown[0]]!r}, which looplm does not know; use until, "
            f"{MAX_TOKENS[0]}, do_sample, temperature, {', '.join(SAMPLING)}"
        )
    numbers = [int(given[name]) for name in MAX_TOKENS if given.get(name) is not None]
    max_tokens = numbers[0] if numbers else min(DEFAULT_MAX_TOKENS, max_length // 2)
    if not 0 < max_tokens < max_length:
        raise UserError(
            f"{MAX_TOKENS[0]}={max_tokens} leaves no room for a prompt in max_length={max_length}; lower the one, or "
            "raise the other"
        )
    until = given.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    does_sample, temperature = given.get("do_sample"), given.get("temperature")
    if does_sample is False:
        temperature = 0.0
    elif temperature is None:
        temperature = 1.0 if does_sample else 0.0
    others = tuple((name, given[name]) for name in SAMPLING if given.get(name) is not None)
    return Asked(max_tokens, tuple(text for text in stop if text), float(temperature), others)
