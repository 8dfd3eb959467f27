"""`python -m segmoe` is the `segmoe` command, which lives in cli.py."""

from segmoe.cli import main

main(prog_name="segmoe")
