"""What a rule is."""

from collections.abc import Callable, Iterator

from looplm.config.schema import Run

Rules = tuple[Callable[[Run], Iterator[str]], ...]
"""Each yields what does not fit in a run, and the remedy."""
