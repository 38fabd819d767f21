"""Sums of token scores by document, batch by batch."""

from dataclasses import dataclass

import jax
import numpy as np

from looplm.eval.reading import INVERSE_TEMPERATURES
from looplm.eval.score import TokenScores, gate_exits
from looplm.metrics.sweep import LoopMeans

EXIT_THRESHOLD = 0.5
"""A token leaves when it has more likely left than not."""


def add_by_document(sums_G: np.ndarray, documents_N: np.ndarray, values_N: np.ndarray) -> None:
    """Add values (N, ...) to the sums (G, ...), float64, of their documents, those of the N alone being touched."""
    starts = np.flatnonzero(np.diff(documents_N, prepend=-1))
    if len(starts):
        np.add.at(sums_G, documents_N[starts], np.add.reduceat(values_N, starts, axis=0, dtype=np.float64))


@dataclass
class Tally:
    """Sums of G documents at R depths."""

    num_documents: int
    num_loops: int
    exit_depth: int | None
    """Loops of the exit gate's distribution; None: there is no gate."""
    tempered: bool = False

    def __post_init__(self) -> None:
        G, R = self.num_documents, self.num_loops
        self.nll_GR, self.correct_GR, self.tokens_G = np.zeros((G, R)), np.zeros((G, R)), np.zeros(G)
        self.tempered_GRK = np.zeros((G, R, len(INVERSE_TEMPERATURES))) if self.tempered else None
        self.exit_counts_R = np.zeros(self.exit_depth or 0)
        self.exit_nll = 0.0
        self.exit_probability_R = np.zeros(self.exit_depth or 0)
        self.loops_R: dict[str, np.ndarray] = {}

    def add(self, batch: dict[str, np.ndarray], scores: TokenScores) -> None:
        """Add a batch of the evaluation loader and its scores."""
        scored_BS = batch["labels"] >= 0
        documents_N = batch["documents"][scored_BS]

        def add(sums_GR: np.ndarray, values_RBS: np.ndarray) -> None:
            add_by_document(sums_GR, documents_N, np.moveaxis(values_RBS[:, scored_BS], 0, 1))

        add(self.nll_GR, scores.nll_RBS)
        add(self.correct_GR, scores.correct_RBS)
        self.tokens_G += np.bincount(documents_N, minlength=self.num_documents)
        if self.tempered_GRK is not None and scores.tempered_RBSK is not None:
            add(self.tempered_GRK, scores.tempered_RBSK)
        for name, sums_R in scores.loops_R.items():
            self.loops_R[name] = self.loops_R.get(name, 0.0) + sums_R.astype(np.float64)
        if (exits := self._exits(scores)) is None:
            return
        exit_RBS, left_BS = exits
        exit_nll_BS = np.take_along_axis(scores.nll_RBS, left_BS[None] - 1, axis=0)[0]
        self.exit_counts_R += np.bincount(left_BS[scored_BS], minlength=len(self.exit_counts_R) + 1)[1:]
        self.exit_nll += float(exit_nll_BS[scored_BS].sum())
        self.exit_probability_R += exit_RBS[:, scored_BS].sum(axis=1)

    def exits(self, scores: TokenScores) -> np.ndarray | None:
        """Return the loop after which every token leaves at the usual threshold, (B, S); None without a gate."""
        exits = self._exits(scores)
        return None if exits is None else exits[1]

    def _exits(self, scores: TokenScores) -> tuple[np.ndarray, np.ndarray] | None:
        """How likely a token leaves after every loop, (R, B, S), and after which it does, (B, S)."""
        if self.exit_depth is None or scores.gate_logits_RBS is None:
            return None
        return jax.device_get(gate_exits(scores.gate_logits_RBS[: self.exit_depth], EXIT_THRESHOLD))

    def loop_means(self) -> LoopMeans | None:
        """Return what every loop does to the state; None where nothing was measured."""
        if not self.loops_R:
            return None
        tokens = self.tokens_G.sum()
        means = {name.removeprefix("loop/"): (sums_R / tokens).tolist() for name, sums_R in self.loops_R.items()}
        return LoopMeans(**means, exit_probability=(self.exit_probability_R / tokens).tolist() or None)
