"""What a whole sequence has beside its tokens: places in front of them, and a gate that speaks for it."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from looplm.config.schema.base import Section


class Ids(Section):
    """A table with a row for every number that a sequence may have, such as that of its puzzle; 0 at first (arXiv
    2506.21734)."""

    num_ids: PositiveInt
    """Rows; ids count from 0."""
    dim: PositiveInt
    """Numbers in a row; they fill as many places of the model's width as they need, the rest is 0."""


class Front(Section):
    """Places in front of the tokens, which layers see as they see tokens and the head does not: first those of the
    sequence's id, then learned ones, then zeros."""

    ids: Ids | None = None
    """The table of ids; None means there is none."""
    learned: NonNegativeInt = 0
    """Places with a learned vector each (arXiv 2604.21999)."""
    zeros: NonNegativeInt = 0
    """Places that begin with nothing (arXiv 2510.04871)."""

    def places(self, dim: int) -> int:
        """How many there are in a model of a width."""
        return (0 if self.ids is None else -(-self.ids.dim // dim)) + self.learned + self.zeros


class SequenceHead(Section):
    """Classes of a whole sequence: logits of tanh(W h + b), h being the last state of its first token (arXiv
    1810.04805)."""

    classes: PositiveInt = 2
    """How many there are."""


class SequenceGate(Section):
    """Linear units per sequence on the state after the last loop, in float32: whether the sequence may halt, and
    whether it should go on (arXiv 2506.21734)."""

    outputs: Literal[1, 2] = 1
    """Halt alone, or halt and go on."""
    compares: bool = True
    """Of two outputs: a sequence halts where the first is above the second, which is trained to say what going on is
    worth. False: the second is idle, as in released weights of TRM and URM, and a sequence halts where the first is
    above 0."""
    pool: Literal["first", "last", "mean"] = "first"
    """Whether they read the first place (in front of the tokens, if there are such), the last token, or the mean."""
    initial_bias: float = -5.0
    """Of logits that are 0 without it at first."""

    @property
    def weighs_going_on(self) -> bool:
        """Whether there is a second output that counts."""
        return self.outputs == 2 and self.compares
