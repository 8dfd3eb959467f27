"""A few of the deaths that `python -m tests.benchmarks.crash` brings about by the hundred."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_job_that_is_killed_or_runs_out_of_disk_goes_on_to_the_same_end() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.crash", "--kills", "4", "--full-disks", "1", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "4 kills in" in done.stdout and "1 full disks in" in done.stdout
