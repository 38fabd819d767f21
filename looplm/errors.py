"""The exceptions that the command line knows: a mistake that the user can mend, and a run that ended on purpose."""

import sys


class UserError(ValueError):
    """A mistake in what the user gave: a file, a config value, a folder.

    The message is one line that names the culprit, its value, the reason and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """


class RunEnded(Exception):
    """Training ended before its last step, on purpose. The message is one line; `code` is the process's exit code."""

    code: int


class Preempted(RunEnded):
    """Somebody asked the run to stop. It is saved; started again it goes on."""

    code = 75


class StoppedItself(RunEnded):
    """Going on would be no use, and as a rule starting again would not be either."""

    code = 76


def show(error: Exception) -> None:
    """One line on stderr."""
    print(f"looplm: {error}", file=sys.stderr)


def warn(text: str) -> None:
    """One line on stderr; the program goes on."""
    print(f"looplm: {text}", file=sys.stderr)


def note(text: str) -> None:
    """One line on stderr that is good to know; nothing is wrong."""
    print(f"note: {text}", file=sys.stderr)
