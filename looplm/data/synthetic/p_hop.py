"""p-hop induction: follow "the token after my previous occurrence" p times (arXiv 2402.09268, 2502.17416).

    find(i)  = max{j <= i : v[j-1] = v[i]}              the position after the previous occurrence of v[i]
    label(i) = v[find(find(...find(i)))]                p times

What a hop finds decides where the next one looks, so the task needs depth and hardly any parameters: a block of one
layer can do it when it is looped, and cannot when it runs once. Every position with an answer is labelled, where the
papers label the last one only: the same task on every prefix, and far more to learn from in a batch.
"""

from dataclasses import dataclass

import numpy as np

from looplm.data.synthetic.draw import below, draw
from looplm.data.synthetic.task import Examples
from looplm.data.window import IGNORED
from looplm.errors import UserError


@dataclass(frozen=True, slots=True)
class PHop:
    """The task of one size; its batches are a function of (seed, step). Raises UserError for a size without a task."""

    hops: int
    """p."""
    length: int
    """Tokens a sequence (S)."""
    alphabet: int = 4
    """Letters, drawn uniformly: the vocabulary."""
    num_examples: int = 1_000_000
    seed: int = 0
    """Of `examples`."""

    def __post_init__(self) -> None:
        if self.hops < 1:
            raise UserError(f"hops={self.hops} asks for nothing; use at least 1")
        if self.alphabet < 3:
            raise UserError(f"alphabet={self.alphabet} leaves a hop no choice of letters; use at least 3")
        if self.length <= (reach := self.hops * self.alphabet):
            raise UserError(
                f"length={self.length} is too short: hops={self.hops} in an alphabet={self.alphabet} go back {reach} "
                f"positions on average; use at least {2 * reach}, so that most positions have an answer"
            )

    @property
    def vocab_size(self) -> int:
        return self.alphabet

    @property
    def mean_length(self) -> float:
        return float(self.length)

    def examples(self, index_N: np.ndarray) -> Examples:
        """Draw the letters of numbered examples, and answer."""
        letters = below(draw(f"p_hop {self.seed}", index_N, self.length), self.alphabet).astype(np.int32)
        return Examples(letters, p_hop_labels(letters, self.hops), np.full(len(letters), self.length))

    def batch(self, size: int, *, seed: int, step: int) -> dict[str, np.ndarray]:
        """Draw int32 (size, S): tokens, labels, segments, positions, as `loader.train_loader` gives them."""
        generator = np.random.default_rng((seed, step))
        tokens_BS = generator.integers(self.alphabet, size=(size, self.length), dtype=np.int32)
        return {
            "tokens": tokens_BS,
            "labels": p_hop_labels(tokens_BS, self.hops),
            "segments": np.ones_like(tokens_BS),
            "positions": np.broadcast_to(np.arange(self.length, dtype=np.int32), tokens_BS.shape),
        }


def p_hop_labels(tokens_BS: np.ndarray, hops: int) -> np.ndarray:
    """Return the letter that is `hops` hops from every position, int32 (B, S).

    -100 where a hop finds no earlier occurrence. Also where the letter repeats the one before it: find(i) = i there,
    so the answer would be the letter itself for any p. From elsewhere, every hop goes back.
    """
    find_BS = _find(tokens_BS)
    at_BS = np.where(find_BS == np.arange(tokens_BS.shape[1]), -1, find_BS)
    for _ in range(hops - 1):
        at_BS = np.where(at_BS >= 0, np.take_along_axis(find_BS, at_BS, axis=1), -1)
    return np.where(at_BS >= 0, np.take_along_axis(tokens_BS, at_BS, axis=1), IGNORED).astype(np.int32)


def _find(tokens_BS: np.ndarray) -> np.ndarray:
    """find(i) of every position, int64 (B, S); -1 where the letter is new."""
    before_BS = np.pad(tokens_BS[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    position_S = np.arange(tokens_BS.shape[1])
    find_BS = np.full(tokens_BS.shape, -1)
    for letter in np.unique(tokens_BS):
        after_BS = np.maximum.accumulate(np.where(before_BS == letter, position_S, -1), axis=1)
        find_BS = np.where(tokens_BS == letter, after_BS, find_BS)
    return find_BS
