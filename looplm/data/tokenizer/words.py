"""The words of a text, and their ids from memory: a model works out anew what the same word gives each time it comes.

A cut in a text changes no id if no piece of the vocabulary spans it, merges of BPE being local. For unigram that is
not so: sums of scores that are rounded may decide otherwise.
"""

import re
from array import array
from collections.abc import Callable, Iterable

import numpy as np

_MAX_WORDS, _MAX_CHARS = 1 << 17, 64
"""Kept: some 30 MB."""
_BEFORE_SPACE = re.compile(r"[^ ] ")
_MIXED = re.compile(r"[^\W_](?:[^\w ]|_)|(?:[^\w ]|_)[^\W_]")


class Words(dict[str, bytes]):
    """Ids of words, int32, as they are asked for."""

    def __init__(self, find: Callable[[str], list[str]], encode: Callable[[str], list[int]]) -> None:
        """`find` cuts a text, `encode` returns the ids of a word."""
        super().__init__()
        self._find, self._encode = find, encode

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, (num_tokens,) int32."""
        return np.frombuffer(bytearray().join(map(self.__getitem__, self._find(text))), np.int32)

    def __missing__(self, word: str) -> bytes:
        ids = array("i", self._encode(word)).tobytes()
        if len(word) <= _MAX_CHARS:
            if len(self) >= _MAX_WORDS:
                self.clear()  # what is frequent is back at once
            self[word] = ids
        return ids


def word_finder(pieces: Iterable[str]) -> Callable[[str], list[str]] | None:
    """Return the cut that no piece spans, spaces being spaces in them; None if there is none.

    Before spaces and at line ends, and between letters and signs where the vocabulary allows it.
    """
    pieces = [piece for piece in pieces if piece != "\n"]
    if any("\n" in piece or _BEFORE_SPACE.search(piece) for piece in pieces):
        return None
    if any(_MIXED.search(piece) for piece in pieces):
        return re.compile(r" *[^ \n]+| +|\n").findall
    return re.compile(r" *[^\W_]+| *(?:[^\w \n]|_)+| +|\n").findall
