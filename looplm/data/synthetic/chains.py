"""Chains of relations that permute the entities (Loop, Think & Generalize, arXiv 2604.07822, task B).

Since every relation is a permutation, no end of a chain is likelier than another, and none can be guessed from the last
relations alone. Chains of k hops are numbered; a permutation of the numbers says which are trained. Where there are
more than 2**62, they are drawn: two that are equal do not occur in practice.
"""

import numpy as np

from looplm.config import schema
from looplm.data.index import permute
from looplm.data.synthetic.draw import below, draw
from looplm.data.synthetic.task import Examples, next_token
from looplm.errors import UserError

_MOST_NUMBERS = 1 << 62


class Chains:
    """The task of one size: tokens are the entities, then the relations."""

    def __init__(self, config: schema.Chains) -> None:
        """Raises UserError for sizes that leave a part without examples."""
        self.config = config
        self.vocab_size, self.length = config.entities + config.relations, config.max_hops + 1
        entities = np.arange(config.entities)
        self.relations = np.stack(
            [permute(entities, config.entities, f"chains {config.seed} {r}") for r in range(config.relations)]
        )
        """Where every relation leads from every entity, (R, E)."""
        self.hops = np.arange(config.min_hops, config.max_hops + 1)
        parts = [self._numbers(int(hops)) for hops in self.hops]
        self._first = np.array([first for first, _ in parts])
        counts = np.array([count for _, count in parts])
        self._starts = np.cumsum(counts) - counts
        self.num_examples = int(counts.sum())
        if self.num_examples == 0:
            raise UserError("chains of one hop are all trained, so none is left for part=unseen; use max_hops above 1")
        self.mean_length = float(counts @ (self.hops + 1)) / self.num_examples

    def __repr__(self) -> str:
        return repr(self.config)

    def _numbers(self, hops: int) -> tuple[int, int]:
        """First number, and how many, of the chains of so many hops."""
        config, total = self.config, self._total(hops)
        trained = total if hops == 1 else min(config.train_queries, total - config.held_out_queries)
        if trained < 1:
            raise UserError(
                f"there are {total} chains of {hops} hops, and held_out_queries={config.held_out_queries} of them "
                "leave none to train on; use fewer"
            )
        return (0, trained) if config.part == "train" else (trained, min(config.held_out_queries, total - trained))

    def _total(self, hops: int) -> int:
        return self.config.entities * self.config.relations**hops

    def examples(self, index_N: np.ndarray) -> Examples:
        E, R = self.config.entities, self.config.relations
        which_N = np.searchsorted(self._starts, index_N, side="right") - 1
        hops_N = self.hops[which_N]
        sequence = np.zeros((len(index_N), self.config.max_hops + 2), np.int64)
        for which in np.unique(which_N).tolist():
            here, hops = np.flatnonzero(which_N == which), int(self.hops[which])
            number_N = index_N[here] - self._starts[which] + self._first[which]
            purpose = f"chains {self.config.seed} {hops} hops"
            if (total := self._total(hops)) < _MOST_NUMBERS:
                number_N = permute(number_N, total, purpose)
                head_N, number_N = number_N % E, number_N // E
                relation_NK = number_N[:, None] // R ** np.arange(hops) % R
            else:
                bits = draw(purpose, number_N, hops + 1)
                head_N, relation_NK = below(bits[:, 0], E), below(bits[:, 1:], R)
            end_N = head_N
            for hop in range(hops):
                end_N = self.relations[relation_NK[:, hop], end_N]
            sequence[here, : hops + 2] = np.concatenate([head_N[:, None], E + relation_NK, end_N[:, None]], axis=1)
        return next_token(sequence, hops_N + 1, hops_N + 2)
