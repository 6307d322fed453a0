"""Bad inputs: one line each, and nothing left; `make bad-inputs` is all of them and forged shards by the hundred."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CLOSING = re.compile(r"bad inputs (\d+), one line each (\d+), nothing left (\d+)$")


def met(*asked: str) -> int:
    """How many were met, all as they should be; in a process of its own: it forks, and may have started no threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bad_inputs.run", *asked],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    found = CLOSING.search(done.stdout.strip())
    assert found is not None, done.stdout + done.stderr
    assert len(set(found.groups())) == 1, done.stdout
    assert done.returncode == 0, done.stdout
    return int(found[1])


def test_a_sample_of_bad_inputs_is_one_line_each_and_leaves_nothing() -> None:
    assert met("--every", "8", "--forged", "12") >= 60


@pytest.mark.slow
def test_every_bad_input_is_one_line_and_leaves_nothing() -> None:
    assert met("--forged", "60") >= 300


def test_there_are_three_hundred_and_no_two_are_alike() -> None:
    from tests.bad_inputs.table import all_cases

    cases = [case for case in all_cases() if not case.owned_by]
    assert len(cases) >= 300
    assert len({case.name for case in cases}) == len(cases)
