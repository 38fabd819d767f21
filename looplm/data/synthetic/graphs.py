"""Questions about graphs of facts with written steps, some of which are thought instead (ProsQA, arXiv 2412.06769).

    every A is a B. ...  is X a Y or a Z?  <begin> latents <end>  X is a C. C is a Y.  <answer> Y

Things are added one after another, each below one or more earlier ones. Most stand below X alone or below the root W of
the wrong answer alone, and those that are deep get more below them. Y is a leaf below X and not below W, Z one below W
and not below X, and the steps are a shortest way from X to Y. Names are drawn anew for every example. Against the
published questions: about as many things and facts; X and W are the only roots, and steps are nothing but two names.
"""

from functools import reduce
from itertools import pairwise
from math import exp
from operator import or_

import numpy as np

from looplm.config import schema
from looplm.data.synthetic.draw import below, draw, orders
from looplm.data.synthetic.task import Examples, next_token
from looplm.errors import UserError

STOP, QUESTION, BEGIN, LATENT, END, ANSWER = 0, 1, 2, schema.Graphs.LATENT, 4, 5
"""Marks; the tokens after them are the things."""
MARKS = 6
_TRIES = 200
"""Graphs that are drawn for an example before it is given up."""
_OF_X, _OF_W = 1, 2
"""Bits of the roots that something stands below."""


class Graphs:
    """The task of one size."""

    def __init__(self, config: schema.Graphs) -> None:
        """Raises UserError for paths that are longer than those of such graphs."""
        self.config, self.num_examples = config, config.num_examples
        self.vocab_size = MARKS + config.things
        left = max(0, config.max_path - config.stage)
        self.length = 3 * config.max_facts + 4 + 2 + config.most_latents + 3 * left + 1
        sizes = np.array([len(self.sequence(index)[0]) for index in range(min(64, self.num_examples))])
        self.mean_length = float(sizes.mean()) - 1

    def __repr__(self) -> str:
        return repr(self.config)

    def examples(self, index_N: np.ndarray) -> Examples:
        made = [self.sequence(index) for index in np.asarray(index_N).tolist()]
        sequence_NL = np.zeros((len(made), self.length + 1), np.int64)
        for row, (tokens, _) in enumerate(made):
            sequence_NL[row, : len(tokens)] = tokens
        starts_N = np.array([start for _, start in made], np.int64)
        return next_token(sequence_NL, starts_N, np.array([len(tokens) for tokens, _ in made], np.int64))

    def sequence(self, index: int) -> tuple[list[int], int]:
        """Return (tokens of an example, where what is asked for begins)."""
        config = self.config
        parents, path, wrong, bits = self.graph(index)
        name = (MARKS + orders(bits[None, : config.things])[0]).tolist()
        facts = [(parent, thing) for thing, above in enumerate(parents) for parent in above]
        order = orders(bits[None, config.things : config.things + len(facts)])[0].tolist()
        choices = [path[-1], wrong][:: 1 if int(bits[-1]) & 1 else -1]
        tokens = [token for fact in order for token in (name[facts[fact][0]], name[facts[fact][1]], STOP)]
        tokens += [QUESTION, name[path[0]], *(name[choice] for choice in choices)]
        steps = list(pairwise(path))
        tokens += [BEGIN, *[LATENT] * config.latents_of(len(steps)), END]
        start = len(tokens)
        tokens += [token for a, b in steps[config.stage :] for token in (name[a], name[b], STOP)]
        return [*tokens, ANSWER, name[path[-1]]], start

    def graph(self, index: int) -> tuple[list[list[int]], list[int], int, np.ndarray]:
        """Return (what every thing stands right below, the way from X to Y, Z, random bits that are left)."""
        config, count = self.config, self.config.things
        for attempt in range(_TRIES):
            purpose = f"graphs {config.seed} {attempt}"
            bits = draw(purpose, np.array([index]), count * (count + 2) + config.max_facts + count + 3)[0]
            parents, depths, roots = _grown(count, bits[: count * (count + 2)].reshape(count, count + 2))
            rest = bits[count * (count + 2) :]
            inner = {parent for above in parents for parent in above}
            leaves = [thing for thing in range(2, count) if thing not in inner]
            right = [
                thing
                for thing in leaves
                if roots[thing] == _OF_X and config.min_path <= depths[thing] <= config.max_path
            ]
            wrong = [thing for thing in leaves if roots[thing] == _OF_W]
            if not right or not wrong or sum(map(len, parents)) > config.max_facts:
                continue
            path = [right[int(below(rest[-2], len(right)))]]
            while path[0] != 0:
                path.insert(0, min(parents[path[0]], key=depths.__getitem__))
            return parents, path, wrong[int(below(rest[-3], len(wrong)))], rest
        raise UserError(
            f"no graph of things={count} and max_facts={config.max_facts} with a way of min_path={config.min_path} to "
            f"max_path={config.max_path} steps among {_TRIES}; use shorter ways, more things or more facts"
        )


def _grown(count: int, bits: np.ndarray) -> tuple[list[list[int]], list[int], list[int]]:
    """Grow a graph from X (0) and W (1). Returns (what every thing stands right below, the fewest steps to it from
    X or W, which of them it stands below)."""
    parents: list[list[int]] = [[], []]
    depths, roots = [0, 0], [_OF_X, _OF_W]
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    for thing in range(2, count):
        side = uniform[thing, 0]
        allowed = {_OF_X} if side < 0.35 else {_OF_W} if side < 0.7 else {_OF_X, _OF_W, _OF_X | _OF_W}
        candidates = [other for other in range(thing) if roots[other] in allowed]
        wanted = min(_num_parents(uniform[thing, 1]), len(candidates))
        # The largest u ** (1 / weight) are a draw without replacement in proportion to the weights.
        weights = np.array([1.5 * depths[other] + 1 for other in candidates])
        chances = np.log(uniform[thing, 2 : 2 + len(candidates)]) / weights
        above = sorted(candidates[k] for k in np.argsort(-chances, kind="stable")[:wanted].tolist())
        parents.append(above)
        depths.append(1 + min(depths[other] for other in above))
        roots.append(reduce(or_, (roots[other] for other in above), 0))
    return parents, depths, roots


def _num_parents(uniform: float) -> int:
    """Turn a uniform number into one from 1 to 9, of the Poisson law with mean 1.5 without its 0."""
    count, term = 1, 1.5 / (exp(1.5) - 1)
    total = term
    while uniform > total and count < 9:
        count += 1
        term *= 1.5 / count
        total += term
    return count
