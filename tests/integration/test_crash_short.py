"""The crash harness, a short one of fixed seed: `make crash` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CLOSING = r"kills (\d+), violations 0, flipped 51, caught 51, malformed 40, refused 40"


def test_nothing_is_lost_by_signals_and_nothing_passes_that_was_changed() -> None:
    """In a process of its own: it forks, and may have done no work with threads before."""
    asked = ["--kills", "3", "--pools", "0", "--flips", "51", "--malformed", "40", "--obstacles", "4", "--seed", "1"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.run", *asked],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    found = re.search(CLOSING, done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert int(found.group(1)) >= 3
    assert done.returncode == 0
