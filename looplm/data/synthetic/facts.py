"""Facts and their compositions (Loop, Think & Generalize, arXiv 2604.07822, task A), asked for the tail.

Every head has facts (head, relation, tail) of different relations. A small part of the facts is never composed in
training: whether a model composes those too is what the task measures. Compositions are numbered, not listed, and a
permutation of the numbers says which of them are trained.
"""

from dataclasses import dataclass

import numpy as np

from looplm.config import schema
from looplm.data.index import permute
from looplm.data.synthetic.draw import below, draw, orders
from looplm.data.synthetic.task import Examples, next_token
from looplm.errors import UserError


@dataclass(frozen=True, slots=True)
class _Part:
    """Facts, sorted by head, that are composed with one another."""

    facts: np.ndarray
    """Head, relation, tail: (F, 3)."""
    first_of_head: np.ndarray
    """Where the facts of every head start, then F: (entities + 1,)."""
    starts: np.ndarray
    """Number of every fact's first composition, then how many there are: (F + 1,)."""

    @classmethod
    def of(cls, facts: np.ndarray, entities: int) -> "_Part":
        counts = np.bincount(facts[:, 0], minlength=entities)
        follow = np.cumsum(np.concatenate([[0], counts[facts[:, 2]]]))
        return cls(facts, np.concatenate([[0], np.cumsum(counts)]), follow)

    @property
    def num_compositions(self) -> int:
        return int(self.starts[-1])

    def composed(self, number_N: np.ndarray) -> np.ndarray:
        """Head, first relation, second relation, tail: (N, 4)."""
        fact_N = np.searchsorted(self.starts, number_N, side="right") - 1
        first = self.facts[fact_N]
        second = self.facts[self.first_of_head[first[:, 2]] + number_N - self.starts[fact_N]]
        return np.stack([first[:, 0], first[:, 1], second[:, 1], second[:, 2]], axis=1)


class Facts:
    """The task of one size: tokens are the entities, then the relations."""

    length = 3

    def __init__(self, config: schema.Facts) -> None:
        """Raises UserError for sizes that leave a part without examples."""
        self.config = config
        self.vocab_size = config.entities + config.relations
        if config.out_degree > config.relations:
            raise UserError(
                f"out_degree={config.out_degree} is more than relations={config.relations}; use at most that"
            )
        heads = np.arange(config.entities)
        relations = orders(draw(f"facts {config.seed} relations", heads, config.relations))[:, : config.out_degree]
        tails = below(draw(f"facts {config.seed} tails", heads, config.out_degree), config.entities)
        self.facts = np.stack([np.repeat(heads, config.out_degree), relations.reshape(-1), tails.reshape(-1)], axis=1)
        F = len(self.facts)
        held_out = permute(np.arange(F), F, f"facts {config.seed} held out") < round(config.held_out_fraction * F)
        self.part = _Part.of(self.facts[held_out == (config.part == "systematic")], config.entities)
        trained = round(config.composed_per_fact * int((~held_out).sum()))
        total = self.part.num_compositions
        if config.part == "systematic":
            self._alone, self._first, count = 0, 0, min(config.max_examples, total)
        elif config.part == "unseen":
            self._alone, self._first, count = 0, trained, min(config.max_examples, total - trained)
        else:
            self._alone, self._first, count = F, 0, min(trained, total)
        self._order = f"facts {config.seed} {config.part == 'systematic'}"
        self.num_examples = self._alone + count
        if count < 1:
            raise UserError(
                f"facts with part={config.part} have no composition left of {total}; give more entities or out_degree, "
                "or less composed_per_fact"
            )
        self.mean_length = (2 * self._alone + 3 * count) / self.num_examples

    def __repr__(self) -> str:
        return repr(self.config)

    def examples(self, index_N: np.ndarray) -> Examples:
        alone_N = index_N < self._alone
        number_N = np.where(alone_N, 0, index_N - self._alone + self._first)
        composed_N4 = self.part.composed(permute(number_N, self.part.num_compositions, self._order))
        fact_N3 = self.facts[np.where(alone_N, index_N, 0)]
        alone_N4 = np.concatenate([fact_N3, fact_N3[:, 2:]], axis=1)
        sequence_N4 = np.where(alone_N[:, None], alone_N4, composed_N4) + self.config.entities * np.stack(
            [0 * alone_N, 1 + 0 * alone_N, ~alone_N, 0 * alone_N], axis=1
        )
        length_N = np.where(alone_N, 3, 4)
        return next_token(sequence_N4, length_N - 1, length_N)
