"""``python -m mlopt``: the command line."""

from mlopt.cli import main

main()
