"""Whether the loops forget where they began: `eval/first_states-<step>.json`, by `looplm eval --first-states N`."""

from looplm.metrics.stored import Measured

KIND = "first_states"


class FirstStates(Measured):
    """Passes from several first states, compared with one another; the lists run over `depths`.

    A path-independent model (arXiv 2211.09961) comes to the same state from wherever it began.
    """

    num_states: int
    """How many first states were drawn for every token."""
    depths: list[int]
    state_distance: list[float]
    """|s - s'| / |s| of two passes, mean over tokens and pairs."""
    divergence: list[float]
    """KL between their predictions, in nats, mean over tokens and pairs."""
    agreement: list[float]
    """Share of tokens whose likeliest successor is the same in both."""
    loss: list[float]
    """Mean over the passes, nats per token."""
    loss_spread: list[float]
    """Standard deviation of a pass's loss."""
