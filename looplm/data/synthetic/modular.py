"""Expressions in prefix notation modulo m, asked for their value (Mano, arXiv 2510.25741): <3> - * 4 7 + 1 2 <ans> 2.

An expression of n operations is an operation, drawn uniformly, with the other n - 1 split between its two sides, every
split alike. What the paper tells first is told first here: how many operations there are.
"""

import numpy as np

from looplm.config import schema
from looplm.data.synthetic.draw import below, draw
from looplm.data.synthetic.task import Examples, next_token

OPERATIONS = 3
"""+, - and *, the tokens after the numbers; then the answer mark; then one for every number of operations."""


class Modular:
    """The task of one size."""

    def __init__(self, config: schema.Modular) -> None:
        self.config, self.num_examples = config, config.num_examples
        self.answer_mark = config.modulus + OPERATIONS
        self.vocab_size = self.answer_mark + 1 + config.operations
        self.length = 2 * config.operations + 3
        self.mean_length = config.operations + 1 + 3.0

    def __repr__(self) -> str:
        return repr(self.config)

    def examples(self, index_N: np.ndarray) -> Examples:
        m, most = self.config.modulus, self.config.operations
        N, row_N = len(index_N), np.arange(len(index_N))
        places = 2 * most + 1
        bits = draw(f"modular {self.config.seed}", index_N, 2 * places + 1)
        operations_N = 1 + below(bits[:, -1], most)
        symbol_NP = below(bits[:, :places], OPERATIONS)
        number_NP = below(bits[:, :places], m)

        # A stack of how many operations the parts that are still to be written have.
        expression_NP = np.zeros((N, places), np.int64)
        stack_NP, depth_N = np.zeros((N, places + 1), np.int64), np.ones(N, np.int64)
        stack_NP[:, 0] = operations_N
        for place in range(places):
            open_N = depth_N > 0
            size_N = np.where(open_N, stack_NP[row_N, np.maximum(depth_N - 1, 0)], 0)
            split_N = open_N & (size_N > 0)
            expression_NP[:, place] = np.where(split_N, m + symbol_NP[:, place], number_NP[:, place])
            first_N = below(bits[:, places + place], np.maximum(size_N, 1))
            last_N = np.maximum(depth_N - 1, 0)
            stack_NP[row_N, last_N] = np.where(split_N, size_N - 1 - first_N, 0)
            stack_NP[row_N, last_N + 1] = np.where(split_N, first_N, stack_NP[row_N, last_N + 1])
            depth_N += np.where(split_N, 1, np.where(open_N, -1, 0))

        length_N = 2 * operations_N + 1
        sequence = np.zeros((N, places + 3), np.int64)
        sequence[:, 0] = self.answer_mark + operations_N
        sequence[:, 1 : places + 1] = expression_NP
        sequence[row_N, 1 + length_N] = self.answer_mark
        sequence[row_N, 2 + length_N] = self._value(expression_NP, length_N)
        return next_token(sequence, 2 + length_N, 3 + length_N)

    def _value(self, expression_NP: np.ndarray, length_N: np.ndarray) -> np.ndarray:
        """Read from the end: a number goes on the stack, an operation takes its two sides from it."""
        m, row_N = self.config.modulus, np.arange(len(expression_NP))
        stack_NP, depth_N = np.zeros((len(row_N), expression_NP.shape[1] + 2), np.int64), np.zeros(len(row_N), np.int64)
        for place in reversed(range(expression_NP.shape[1])):
            token_N, here_N = expression_NP[:, place], place < length_N
            applied_N = here_N & (token_N >= m)
            left_N, right_N = (stack_NP[row_N, np.maximum(depth_N - back, 0)] for back in (1, 2))
            results = [left_N + right_N, left_N - right_N, left_N * right_N]
            value_N = np.where(applied_N, np.choose(np.clip(token_N - m, 0, 2), results) % m, token_N)
            depth_N += np.where(applied_N, -1, np.where(here_N, 1, 0))
            top_N = np.maximum(depth_N - 1, 0)
            stack_NP[row_N, top_N] = np.where(here_N, value_N, stack_NP[row_N, top_N])
        return stack_NP[:, 0]
