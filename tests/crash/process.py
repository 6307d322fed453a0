"""A command in a process forked from this one, which has imported everything: a trial costs its work and no imports.

A signal is let in from the command's beginning to its end, never while the harness sets it up: what is killed is the
command. The process that forks must have done no work of its own with threads (torch, Arrow, tokenizers).
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LONGEST = 1200.0  # seconds until a process counts as hanging: it may have little of a core
BUG = 70  # exit code of what ended with a traceback outside the command


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), and what it said on both outputs."""

    code: int
    said: str

    @property
    def is_one_line(self) -> bool:
        """Whether it was refused as a user may be: exit code 1 and one line."""
        lines = self.said.strip().splitlines()
        return self.code == 1 and len(lines) == 1 and lines[0].startswith("error: ")

    @property
    def last_words(self) -> str:
        """The end of what it said, in one line."""
        return f"ended with {self.code}: {' | '.join(self.said.strip().splitlines()[-6:])[-700:]}"


class Process:
    """A forked process that carries out a command line.

    Args:
        words: "sra-data" or "sra-train" and its arguments.
        log: Where its outputs go.
        before: Called in it, before the command.
    """

    def __init__(self, words: Sequence[object], log: Path, before: Callable[[], object] | None = None) -> None:
        self.words = [str(word) for word in words]
        self.log = log
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.pid = os.fork()
        if self.pid == 0:
            _live(self.words, log, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def send(self, number: int) -> None:
        """Send a signal; it is not reaped before `wait`, so the id is its own."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end; one that hangs is killed, and has said so."""
        started, hangs = time.monotonic(), ""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                said = self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""
                return Ended(os.waitstatus_to_exitcode(status), hangs + said)
            if not hangs and time.monotonic() - started > LONGEST:
                hangs = f"Traceback: it did not end within {LONGEST:.0f} s\n"
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)


def _live(words: Sequence[str], log: Path, before: Callable[[], object] | None) -> None:
    """The whole life of a forked process; it never returns."""
    code: object = BUG
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()
        _carry_out(words)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else BUG)


def _carry_out(words: Sequence[str]) -> None:
    """What the programs' entry points do, with the signals let in for as long as the command lasts."""
    from sra_data import cli as data
    from sra_data import terminal
    from sra_train import cli as train

    app, then = {
        "sra-data": (data.app, "run the same command again: finished units are kept"),
        "sra-train": (train.app, "run the same command again: it goes on from the last checkpoint"),
    }[words[0]]

    def command() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            app(args=list(words[1:]), prog_name=words[0])
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    terminal.run(command, how_to_go_on=then)


def carried_out(words: Sequence[object], log: Path, before: Callable[[], object] | None = None) -> Ended:
    """A command from its beginning to its end."""
    return Process(words, log, before).wait()
