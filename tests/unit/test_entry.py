"""Both packages' command lines run as modules too, as torchrun and a scheduler start them."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["sra_data", "sra_train"])
def test_a_command_line_runs_as_a_module(package: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"{package}.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1].count(".") == 2
