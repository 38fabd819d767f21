"""Stop strings, and text that comes while it is written."""

from collections.abc import Callable, Sequence

import numpy as np

UNFINISHED = "\ufffd"
"""What the bytes of a character that is not whole yet are decoded as."""

ToText = Callable[[int, np.ndarray], str]
"""The number of a prompt, and tokens that follow it -> what they add to its text."""


class Listener:
    """Looks at what is written, ends it at a stop string, and tells of new text; see `Watch`."""

    def __init__(
        self, to_text: ToText, stops: Sequence[str] = (), tell: Callable[[int, str], None] | None = None
    ) -> None:
        """tell: called with the number of a prompt and text that nothing which follows can change."""
        self._to_text, self._stops, self._tell = to_text, tuple(stops), tell
        self._told: dict[int, int] = {}

    def watch(self, number: int, tokens: np.ndarray) -> int | None:
        """Return how many of the tokens there are up to the end of the first stop string; None: there is none."""
        text = self._to_text(number, tokens)
        if self._found(text) is not None:
            # The fewest tokens whose text holds it; more of them never take it away.
            low, high = 1, len(tokens)
            while low < high:
                middle = (low + high) // 2
                is_there = self._found(self._to_text(number, tokens[:middle])) is not None
                low, high = (low, middle) if is_there else (middle + 1, high)
            return low
        if self._tell is not None:
            self._advance(number, text[: len(text) - self._unsure(text)])
        return None

    def end(self, number: int, tokens: np.ndarray) -> str:
        """Return the text of an answer that is whole, cut before its stop string, and tell what was not told yet."""
        text = self._to_text(number, tokens)
        if (found := self._found(text)) is not None:
            text = text[:found]
        if self._tell is not None:
            self._advance(number, text)
        return text

    def _found(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=None)

    def _unsure(self, text: str) -> int:
        """How many characters at the end may change, or belong to a stop string."""
        whole = text.rstrip(UNFINISHED)
        starts = [n for stop in self._stops for n in range(1, len(stop)) if whole.endswith(stop[:n])]
        return len(text) - len(whole) + max(starts, default=0)

    def _advance(self, number: int, text: str) -> None:
        told = self._told.get(number, 0)
        if len(text) > told and self._tell is not None:
            self._tell(number, text[told:])
            self._told[number] = len(text)
