"""What generation gives back: new tokens, and the text they stand for."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from looplm.infer.board import Counts


class Written(NamedTuple):
    """The new tokens of one row, without the end token, and what they cost."""

    tokens: np.ndarray
    """(N,) int32."""
    loops: np.ndarray
    """(N,) int32: after how many loops each of them was read."""


class Continuation(str):
    """A text that a model wrote, which also holds the tokens it was read from and the loops that each of them took."""

    written: Written
    """The whole record of the answer."""

    def __new__(cls, text: str, written: Written) -> Self:
        self = super().__new__(cls, text)
        self.written = written
        return self

    @property
    def tokens(self) -> np.ndarray:
        """The new tokens, (N,) int32, without the end token."""
        return self.written.tokens

    @property
    def loops(self) -> np.ndarray:
        """After how many loops each of the tokens was read, (N,) int32."""
        return self.written.loops


class Continuations(list[Continuation]):
    """The texts of a generation, and what was computed for them."""

    def __init__(self, texts: Iterable[Continuation], counts: Counts | None) -> None:
        super().__init__(texts)
        self.counts = counts
