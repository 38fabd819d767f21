"""Which ends of a run a launcher starts again. The one place that says so: templates ask it or are filled from it."""

from looplm.errors import Preempted, StoppedItself

DONE, CRASHED, MISTAKE = 0, 1, 2
INTERRUPTED = 130
"""After Ctrl-C."""
NOT_FOUND = (126, 127)
"""The shell's: there is no such program."""
NO_USE = (MISTAKE, StoppedItself.code)
"""Ends of looplm itself, other than done, after which the same command would end the same way."""
FINAL = frozenset({DONE, INTERRUPTED, *NO_USE, *NOT_FOUND})
MAX_CRASHES = 20
"""A run that has been started again so often and still crashes is left to a person."""


def starts_again(code: int, starts: int = 0) -> bool:
    """Tell whether the same command, given again, goes on with the run.

    Args:
        code: how it ended; 128 + N for signal N, as shells say it.
        starts: how often it was started again so far, for whatever reason.
    """
    return code == Preempted.code or (code not in FINAL and starts < MAX_CRASHES)
