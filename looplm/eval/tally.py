"""Sums of token scores by document, batch by batch."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from looplm.eval.reading import INVERSE_TEMPERATURES
from looplm.eval.score import TokenScores, exit_loops
from looplm.metrics.sweep import LoopMeans
from looplm.model.gates import log_exit_distribution

EXIT_THRESHOLD = 0.5
"""A token leaves when it has more likely left than not."""


def sums_by_document(documents_N: np.ndarray, values_N: np.ndarray, num_documents: int) -> np.ndarray:
    """Sum values (N, ...) by the document of each, (G, ...) float64."""
    starts = np.flatnonzero(np.diff(documents_N, prepend=-1))
    sums = np.zeros((num_documents, *values_N.shape[1:]))
    if len(starts):
        np.add.at(sums, documents_N[starts], np.add.reduceat(values_N, starts, axis=0, dtype=np.float64))
    return sums


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

        def by_document(values_RBS: np.ndarray) -> np.ndarray:
            return sums_by_document(documents_N, np.moveaxis(values_RBS[:, scored_BS], 0, 1), self.num_documents)

        self.nll_GR += by_document(scores.nll_RBS)
        self.correct_GR += by_document(scores.correct_RBS)
        self.tokens_G += np.bincount(documents_N, minlength=self.num_documents)
        if self.tempered_GRK is not None and scores.tempered_RBSK is not None:
            self.tempered_GRK += by_document(scores.tempered_RBSK)
        for name, sums_R in scores.loops_R.items():
            self.loops_R[name] = self.loops_R.get(name, 0.0) + sums_R.astype(np.float64)
        left_BS, gate_logits_RBS = self.exits(scores), scores.gate_logits_RBS
        if left_BS is None or gate_logits_RBS is None:
            return
        exit_nll_BS = np.take_along_axis(scores.nll_RBS, left_BS[None] - 1, axis=0)[0]
        self.exit_counts_R += np.bincount(left_BS[scored_BS], minlength=len(self.exit_counts_R) + 1)[1:]
        self.exit_nll += float(exit_nll_BS[scored_BS].sum())
        exit_RBS = np.exp(log_exit_distribution(jnp.asarray(gate_logits_RBS[: self.exit_depth])))
        self.exit_probability_R += exit_RBS[:, scored_BS].sum(axis=1)

    def exits(self, scores: TokenScores) -> np.ndarray | None:
        """Return the loop after which every token leaves at the usual threshold, (B, S); None without a gate."""
        if self.exit_depth is None or scores.gate_logits_RBS is None:
            return None
        return exit_loops(scores.gate_logits_RBS[: self.exit_depth], EXIT_THRESHOLD)

    def loop_means(self) -> LoopMeans | None:
        """Return what every loop does to the state; None where nothing was measured."""
        if not self.loops_R:
            return None
        tokens = self.tokens_G.sum()
        means = {name.removeprefix("loop/"): (sums_R / tokens).tolist() for name, sums_R in self.loops_R.items()}
        return LoopMeans(**means, exit_probability=(self.exit_probability_R / tokens).tolist() or None)
