"""Shell scripts run for real, whose `sra-data` and `sra-train` answer from inside the test's process.

A new process for each command would spend nearly all of its time on imports. In their place stand two files on the PATH
that ring, hand over their words and wait for the answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.integration.command_lines import Answer, sra_data, sra_train

STAND_IN = """#!/usr/bin/env bash
here=${0%/*}
printf '%s\\0' "${0##*/}" "$@" >"$here/words"
echo >"$here/bell"
read -r code <"$here/code"
cat "$here/output"
cat "$here/error" >&2
exit "$code"
"""
COMMANDS = {"sra-data": sra_data, "sra-train": sra_train}
UNEXPECTED = Answer(70, "", "")


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    exit_code: int
    output: str
    error: str


def run_script(words: list[str], environment: Mapping[str, object]) -> Ended:
    """Run a script whose commands are the installed ones, each a process."""
    return _ended(_started(words, environment, first=Path(sys.executable).parent))


def run_script_here(words: list[str], environment: Mapping[str, object], folder: Path) -> Ended:
    """Run a script whose commands run in this process.

    Args:
        words: The script and its arguments.
        environment: Beside the tests' own.
        folder: An empty one, for what stands in for the commands.
    """
    for name in COMMANDS:
        (folder / name).write_text(STAND_IN, encoding="utf-8")
        (folder / name).chmod(0o755)
    for name in ("bell", "code"):
        os.mkfifo(folder / name)
    bell = os.open(folder / "bell", os.O_RDWR)  # for writing too: it stays open between rings
    process, ends = _started(words, environment, first=folder), []

    def wait_for_the_end() -> None:
        ends.append(_ended(process))
        os.write(bell, b"\n")

    waiting = threading.Thread(target=wait_for_the_end)
    waiting.start()
    try:
        while os.read(bell, 1) and not ends:
            program, *arguments = (folder / "words").read_text(encoding="utf-8").split("\0")[:-1]
            try:
                answer = COMMANDS[program](*arguments)
            except BaseException:
                _hand_back(UNEXPECTED, folder)  # or the script would wait for ever
                raise
            _hand_back(answer, folder)
    finally:
        waiting.join()
        os.close(bell)
    return ends[0]


def _hand_back(answer: Answer, folder: Path) -> None:
    (folder / "output").write_text(answer.output, encoding="utf-8")
    (folder / "error").write_text(answer.error, encoding="utf-8")
    (folder / "code").write_text(f"{answer.exit_code}\n", encoding="utf-8")


def _started(words: list[str], environment: Mapping[str, object], *, first: Path) -> subprocess.Popen[str]:
    own = {"PATH": os.pathsep.join([str(first), os.environ["PATH"]]), "PYTHON": sys.executable}
    named = {name: str(value) for name, value in environment.items()}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env={**os.environ, **own, **named}, stdout=pipe, stderr=pipe, text=True)


def _ended(process: subprocess.Popen[str]) -> Ended:
    output, error = process.communicate()
    return Ended(process.returncode, output, error)
