"""`python -m observer` is the `observer` command, which lives in cli.py."""

from observer.cli import main

main(prog_name="observer")
