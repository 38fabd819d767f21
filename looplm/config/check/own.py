"""Rules of users' parts: what they say themselves."""

from collections.abc import Iterator

from looplm.config.check.rule import Rules
from looplm.config.schema import Own, Run


def _faults(run: Run) -> Iterator[str]:
    for part in (run.model.core, run.model.halting, run.model.injection, run.objective):
        if isinstance(part, Own):
            yield from part.faults(run)


RULES: Rules = (_faults,)
