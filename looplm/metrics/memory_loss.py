"""What a memory over the sequence is worth, by its length: `eval/memory-<step>.json`, by `looplm eval --memory M`."""

from looplm.metrics.stored import Measured, Stored

KIND = "memory"


class MemoryLoss(Stored):
    """A length against no memory, on the same tokens, at the full depth."""

    length: int
    """Tokens that are remembered before a window (M); 0 is no memory."""
    loss: float
    """Nats per token."""
    change: float
    change_low: float
    change_high: float
    """The loss minus that without a memory: with its 95 % interval, paired, by bootstrap over documents."""
    loss_by_context: list[float]
    """The loss of the tokens of every bin of `context`."""


class MemoryLosses(Measured):
    """Lengths of a memory, and the losses under them by context length."""

    num_loops: int
    """R, the full depth."""
    window: int
    """Tokens that are read at once (S), of which a token sees those before it in any case."""
    trained_length: int
    """M in training."""
    context: list[int]
    """Bins of tokens: the least number of tokens of its document that were read before a token, 0, 1, 2, 4, 8, ..."""
    context_tokens: list[int]
    """Tokens in every bin."""
    memories: list[MemoryLoss]
    """By length, ascending."""
