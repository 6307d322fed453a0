"""How soon a command says something: what `--help` and the first line of `align` take beside Typer and rich alone.

    python -m benchmarks.start [--runs 11]

Every start is a process of its own; the sides of each ratio take turns, after one of each that warms the files up.
Prints one JSON object, each ratio with its two sides in seconds (medians):

    help_over_bare          `sra-data --help` / `python -c "import typer, rich"` (target: at most 2.0)
    train_help_over_bare    `sra-train --help` / the same (target: at most 2.0)
    first_line_over_bare    from the start of `sra-data align` to its first line / the same; it is the numerator that
                            has a target (at most 1.0 s on an idle machine)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
BARE = "import typer, rich"


def environment() -> dict[str, str]:
    """This process's, with the repository to import from wherever a program starts."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


def program(package: str, *words: str) -> list[str]:
    """The words that start one of the two programs."""
    return [sys.executable, "-c", f"from {package}.cli import main; main()", *words]


def until_the_end(words: list[str]) -> Callable[[], float]:
    """Seconds from the start of a process to its end."""

    def measure() -> float:
        started = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment())
        return time.perf_counter() - started

    return measure


def until_its_first_line(words: list[str]) -> Callable[[], float]:
    """Seconds from the start of a process to its first line on standard error; it is ended then."""

    def measure() -> float:
        started = time.perf_counter()
        with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment()) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            seconds = time.perf_counter() - started
            process.kill()
        if not line.startswith(b"align: "):
            raise RuntimeError(f"the first line of align is {line!r}")
        return seconds

    return measure


def measure(runs: int) -> dict[str, Any]:
    """All ratios with their two sides."""
    with tempfile.TemporaryDirectory() as folder:
        align = ("--teacher", "no/teacher", "--student", "no/student", "--out", f"{folder}/shards")
        sides = {
            "bare": until_the_end([sys.executable, "-c", BARE]),
            "help": until_the_end(program("sra_data", "--help")),
            "train_help": until_the_end(program("sra_train", "--help")),
            "first_line": until_its_first_line(program("sra_data", "align", *align)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(runs + 1):
            for name, side in sides.items():
                taken = side()
                if number:
                    seconds[name].append(taken)
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    result: dict[str, Any] = {}
    for name in ("help", "train_help", "first_line"):
        result[f"{name}_over_bare"] = medians[name] / medians["bare"]
        result[f"{name}_over_bare_numerator"] = medians[name]
        result[f"{name}_over_bare_denominator"] = medians["bare"]
    return result


def main() -> None:
    """Run the benchmark and print its one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    chosen = parser.parse_args()
    versions = {name: version(name) for name in ("typer", "rich")}
    machine = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    print(json.dumps(measure(chosen.runs) | {"configuration": vars(chosen) | machine}))


if __name__ == "__main__":
    main()
