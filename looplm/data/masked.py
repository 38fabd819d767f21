"""Tokens to be found again: some places of every row are hidden, and those alone are scored (arXiv 1810.04805).

A place is chosen with those that follow it, up to n of them, p(n) ~ 1/n (arXiv 1909.11942, of words there, of tokens
here), and never across the end of a document. What is hidden in a row depends on its key alone: in training (seed,
step, row of the global batch), of held-out data the number of the window. Deliberately absent: the batch on devices,
which is one of tokens and labels like any other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from looplm.config.schema import Masking
from looplm.data.window import IGNORED, PADDING, Windows

TRAINING, HELD_OUT = 1, 2
"""Keep the random numbers of both apart."""


@dataclass(frozen=True, slots=True)
class Masks:
    """How rows of tokens below `vocab_size` are hidden."""

    config: Masking
    vocab_size: int
    """Of the data: tokens below it stand in for others."""

    def hidden(self, batch: dict[str, np.ndarray], keys_B: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Return the batch with tokens hidden, and the labels (B, S) of the chosen places, which are the tokens there.

        Args:
            batch: as `Windows.read` gives it.
            keys_B: of every row, numbers of at least 0; equal keys hide the same places of the same row.
        """
        tokens_BS, labels_BS = batch["tokens"].copy(), np.full_like(batch["labels"], IGNORED)
        for row, key in enumerate(keys_B):
            rng = np.random.default_rng(key)
            chosen_N = self._chosen(batch["tokens"][row], batch["segments"][row], rng)
            labels_BS[row, chosen_N] = tokens_BS[row, chosen_N]
            tokens_BS[row, chosen_N] = self._replaced(tokens_BS[row, chosen_N], rng)
        return batch | {"tokens": tokens_BS, "labels": labels_BS}

    def _chosen(self, tokens_S: np.ndarray, segments_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the chosen places of a row, ascending: the share of those that may be, and at least one of them."""
        may_S = (segments_S != PADDING) & ~np.isin(tokens_S, self.config.never)
        budget = max(1, round(self.config.share * int(may_S.sum()))) if may_S.any() else 0
        runs_S = np.where(may_S, segments_S, PADDING)
        places = [place for span in spans(runs_S, budget, self.config.longest, rng) for place in span]
        return np.sort(np.array(places, int))

    def _replaced(self, tokens_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what stands at chosen places: mostly the mask, else any token, else what was there."""
        draw_N, any_N = rng.random(tokens_N.size), rng.integers(self.vocab_size, size=tokens_N.size)
        masked = self.config.masked_share
        shown_N = np.where(draw_N < masked + self.config.random_share, any_N, tokens_N)
        return np.where(draw_N < masked, self.config.mask_token, shown_N)


def spans(runs_S: np.ndarray, budget: int, longest: int, rng: np.random.Generator) -> Iterator[range]:
    """Choose spans of places that do not overlap until they hold `budget` places, which are to be there.

    A span has the drawn length, p(n) ~ 1/n of n = 1 .. longest, or ends before what it would cross: the end of its run,
    a place that is chosen already, or the budget.

    Args:
        runs_S: spans lie in places of one number; 0 is in none.
    """
    S = runs_S.size
    inverse_N = 1 / np.arange(1, longest + 1)
    lengths_S = rng.choice(np.arange(1, longest + 1), size=S, p=inverse_N / inverse_N.sum()).tolist()
    starts_S = rng.permutation(S).tolist()
    # Lists, which are read faster than arrays one by one.
    free_S = runs_S.tolist()
    for start, length in zip(starts_S, lengths_S, strict=True):
        if not budget:
            return
        run, stop = free_S[start], start
        while run and stop < min(S, start + min(length, budget)) and free_S[stop] == run:
            free_S[stop] = 0
            stop += 1
        if stop > start:
            budget -= stop - start
            yield range(start, stop)


class MaskedWindows:
    """Windows of held-out data, each always hidden in the same way."""

    def __init__(self, windows: Windows, masks: Masks) -> None:
        self.windows, self.masks = windows, masks

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def fingerprint(self) -> str:
        return f"{self.windows.fingerprint} {self.masks.config.model_dump_json()}"

    @property
    def vocab_size(self) -> int:
        return self.windows.vocab_size

    @property
    def padding(self) -> float:
        return self.windows.padding

    @property
    def num_ids(self) -> int:
        return self.windows.num_ids

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        keys_B = [(HELD_OUT, number) for number in window_ids_B.tolist()]
        return self.masks.hidden(self.windows.read(window_ids_B), keys_B)
