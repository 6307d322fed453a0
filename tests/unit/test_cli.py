"""The command contract: quick help, one line on known errors, exit codes 0, 1 and 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sra_data

PROGRAMS = ("sra_data.cli", "sra_train.cli")
HEAVY = {"torch", "transformers", "datasets", "pyarrow", "numpy", "pydantic", "accelerate", "matplotlib"}


def call(module: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", f"from {module} import main; main()", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("module", PROGRAMS)
def test_help_imports_nothing_heavy(module: str) -> None:
    """What makes `--help` slow is what it imports; how long it takes is the machine's affair."""
    asked = f"import sys; sys.argv = ['x', '--help']; from {module} import app; app(standalone_mode=False)"
    told = f"{asked}; print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stderr.split() == []


@pytest.mark.parametrize("module", PROGRAMS)
def test_both_programs_say_their_version(module: str) -> None:
    assert call(module, "--version").stdout == f"sra-distill {sra_data.__version__}\n"


@pytest.mark.parametrize("module", PROGRAMS)
def test_wrong_usage_exits_with_2(module: str) -> None:
    assert call(module, "no-such-command").returncode == 2


def test_known_error_is_one_line_and_exit_1(tmp_path: Path) -> None:
    done = call("sra_data.cli", "cache-teacher", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stdout == ""
    begun, error = done.stderr.splitlines()
    assert begun == f"cache-teacher: {tmp_path / 'nowhere'}"  # said before anything heavy is imported
    assert error.startswith("error: ")
    assert "nowhere" in error
    assert not (tmp_path / "nowhere").exists()
