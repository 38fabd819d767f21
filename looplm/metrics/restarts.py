"""What several tries of the same examples are worth: `eval/restarts-<step>.json`, by `looplm eval --restarts N`."""

from looplm.metrics.stored import Measured

KIND = "restarts"


class Restarts(Measured):
    """Examples that are solved, of a task, when the best of several tries is chosen; the lists run over `tries`.

    A try is a pass from first states of its own, or with noise of its own. Answers that are right are those that the
    loops come to rest at more often than others (arXiv 2605.21488).
    """

    depth: int
    """Loops of every try."""
    settling_loops: int
    """The last so many loops, over which it is measured how far the state still moves."""
    tries: list[int]
    single: float
    """Share of the examples that one try solves, mean over all of them."""
    settled: list[float]
    """Share that is solved when the try whose state moved least at the end is taken."""
    vote: list[float]
    """Share that is solved by the answer that most tries give; among equals the one that moved least."""
    any_of_them: list[float]
    """Share that at least one try solves: what no choice can exceed."""
