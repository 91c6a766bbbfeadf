"""`python -m afina`."""

from afina.cli import main

main()
