"""Sums of numbers with leading zeros, digit by digit: 0047+0318=00365, asked for what follows the equals sign."""

import numpy as np

from looplm.config import schema
from looplm.data.synthetic.draw import below, draw
from looplm.data.synthetic.task import Examples, next_token

PLUS, EQUALS = 10, 11
"""The other tokens are the digits."""


class Addition:
    """The task of one size."""

    vocab_size = 12

    def __init__(self, config: schema.Addition) -> None:
        self.config, self.num_examples = config, config.num_examples
        # A sum of n numbers is below n times 10 ** digits.
        self.sum_digits = config.digits + len(str(config.operands - 1))
        self.answer_start = config.operands * (config.digits + 1)
        self.length = self.answer_start + self.sum_digits - 1
        self.mean_length = float(self.length)

    def __repr__(self) -> str:
        return repr(self.config)

    def examples(self, index_N: np.ndarray) -> Examples:
        n, digits = self.config.operands, self.config.digits
        # Ones first.
        operand_NOD = below(draw(f"addition {self.config.seed}", index_N, n * digits), 10).reshape(-1, n, digits)
        sum_NC = np.zeros((len(operand_NOD), self.sum_digits), np.int64)
        sum_NC[:, :digits] = operand_NOD.sum(axis=1)
        for place in range(self.sum_digits - 1):
            sum_NC[:, place + 1] += sum_NC[:, place] // 10
        sum_NC %= 10
        if not self.config.reverse:
            operand_NOD, sum_NC = operand_NOD[..., ::-1], sum_NC[:, ::-1]
        signs_O1 = np.array([PLUS] * (n - 1) + [EQUALS])[:, None]
        signed = [operand_NOD, np.broadcast_to(signs_O1, (*operand_NOD.shape[:2], 1))]
        question_N = np.concatenate(signed, axis=2).reshape(len(operand_NOD), -1)
        count = np.ones(len(question_N), np.int64)
        sequence = np.concatenate([question_N, sum_NC], axis=1)
        return next_token(sequence, count * self.answer_start, count * sequence.shape[1])
