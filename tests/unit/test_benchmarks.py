"""Every benchmark runs as the script it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["align", "cache", "read", "scale", "scale_s3", "start", "train"])
def test_a_benchmark_runs_as_a_script_from_anywhere(name: str, tmp_path: Path) -> None:
    script = REPOSITORY / "benchmarks" / f"{name}.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
