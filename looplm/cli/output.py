"""Where the command line writes: results to standard output, all else to standard error."""

from rich.console import Console

console = Console(markup=False, highlight=False, soft_wrap=True)
messages = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
