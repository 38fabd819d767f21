"""What exit rules ask of single tokens, gathered over the batches of a sweep."""

from dataclasses import dataclass, field

import numpy as np

from looplm.eval.score import TokenScores
from looplm.eval.tally import add_by_document

MOST_SCORES = 2**22
"""Of so many pairs of a token and a loop everything is remembered (some 150 MB); of larger data, every n-th batch."""


@dataclass(frozen=True)
class Tokens:
    """N scored tokens after each of R loops, in the order of their documents 0..G-1."""

    documents_N: np.ndarray
    nll_RN: np.ndarray
    correct_RN: np.ndarray
    best_RN: np.ndarray
    """The likeliest successor."""
    scores: dict[str, np.ndarray]
    """By the name of a rule what it compares with its threshold, (R, N)."""

    @property
    def num_documents(self) -> int:
        return int(self.documents_N[-1]) + 1

    @property
    def num_loops(self) -> int:
        return len(self.nll_RN)

    def by_document(self, values_N: np.ndarray) -> np.ndarray:
        """Sum (N, ...) by document, (G, ...)."""
        sums_G = np.zeros((self.num_documents, *values_N.shape[1:]))
        add_by_document(sums_G, self.documents_N, values_N)
        return sums_G


@dataclass
class ExitTokens:
    """Remembers batches; see `depth_sweep`."""

    num_loops: int
    """R, the full depth."""
    num_batches: int
    batch_tokens: int
    seen: int = field(default=0, init=False)
    parts: list[dict[str, np.ndarray]] = field(default_factory=list, init=False)

    def add(self, batch: dict[str, np.ndarray], scores: TokenScores) -> None:
        """Add a batch of the evaluation loader, or pass over it."""
        every = -(-self.num_batches * self.batch_tokens * self.num_loops // MOST_SCORES)
        self.seen += 1
        signals, scored_BS = scores.signals, batch["labels"] >= 0
        if signals is None or (self.seen - 1) % every:
            return
        part = {"documents": batch["documents"][scored_BS]}
        arrays = {"nll": scores.nll_RBS, "correct": scores.correct_RBS, "gate": scores.gate_logits_RBS}
        arrays |= {name.removesuffix("_RBS"): array for name, array in signals._asdict().items()}
        for name, array_RBS in arrays.items():
            if array_RBS is not None:
                part[name] = array_RBS[: self.num_loops, scored_BS]
        self.parts.append(part)

    def tokens(self) -> Tokens:
        """Return all that was remembered."""
        found = {name: np.concatenate([part[name] for part in self.parts], axis=-1) for name in self.parts[0]}
        _, documents_N = np.unique(found["documents"], return_inverse=True)
        order_N = np.argsort(documents_N, kind="stable")
        found = {name: array[..., order_N] for name, array in found.items()}
        scores = {
            "kl": np.concatenate([np.full_like(found["divergence"][:1], np.inf), found["divergence"][1:]]),
            "latent": found["change"],
            "entropy": found["entropy"],
            "argmax": _in_a_row(found["best"]),
            "confidence": found["confidence"],
        }
        if "gate" in found:
            scores["gate"] = _exited(found["gate"])
        return Tokens(documents_N[order_N], found["nll"], found["correct"], found["best"], scores)


def _exited(gate_logits_RN: np.ndarray) -> np.ndarray:
    """Return the cumulative exit probability."""
    log_stay_RN = -np.logaddexp(0, gate_logits_RN)
    before_RN = np.cumsum(log_stay_RN, axis=0) - log_stay_RN
    return np.cumsum(np.exp(before_RN - np.logaddexp(0, -gate_logits_RN)), axis=0)


def _in_a_row(best_RN: np.ndarray) -> np.ndarray:
    """Return for how many loops the likeliest successor has been the same."""
    count_RN = np.ones_like(best_RN)
    for loop in range(1, len(best_RN)):
        count_RN[loop] = np.where(best_RN[loop] == best_RN[loop - 1], count_RN[loop - 1] + 1, 1)
    return count_RN
