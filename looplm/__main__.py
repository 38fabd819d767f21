"""`python -m looplm`."""

from looplm.cli import main

main()
