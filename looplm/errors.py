"""The one exception that means "the user can mend this"."""

import sys


class UserError(ValueError):
    """A mistake in what the user gave: a file, a config value, a folder.

    The message is one line that names the culprit, its value, the reason and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """


def show(error: UserError) -> None:
    """One line on stderr."""
    print(f"looplm: {error}", file=sys.stderr)


def warn(text: str) -> None:
    """One line on stderr; the program goes on."""
    print(f"looplm: {text}", file=sys.stderr)
