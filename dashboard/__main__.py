"""`python -m dashboard --db FILE`: start the pages on one record, for this machine alone unless told otherwise."""

import argparse
import os
import sys
from pathlib import Path

from dashboard.contract import RECORD_VARIABLE


def main() -> None:
    """Become the Streamlit server, so that signals reach it."""
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="Show the record of observation runs.")
    parser.add_argument("--db", type=Path, required=True, metavar="FILE", help="the record, as written by observer")
    parser.add_argument("--port", type=int, default=8501, metavar="N", help="port to listen at (default: %(default)s)")
    parser.add_argument(
        "--address",
        default="localhost",
        metavar="HOST",
        help="address to listen at (default: %(default)s); any other lets those who reach it read the record",
    )
    parser.add_argument("--headless", action="store_true", help="do not open a browser")
    arguments = parser.parse_args()

    command = [sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("app.py"))]
    command += ["--server.address", arguments.address, "--server.port", str(arguments.port)]
    command += ["--browser.gatherUsageStats", "false", "--server.showEmailPrompt", "false"]
    command += ["--server.headless", "true"] if arguments.headless else []
    os.execve(sys.executable, command, {**os.environ, RECORD_VARIABLE: str(arguments.db.absolute())})


if __name__ == "__main__":
    main()
