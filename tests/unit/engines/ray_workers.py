"""Workers that actors make: they square, leave a line in a file for each unit they do, and die, stop or refuse on cue.

A module of its own, which every actor imports.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sra_data.engines.work import Advance, Work
from sra_data.errors import ShardError


@dataclass(frozen=True)
class Noting:
    """Workers that square a unit and note that they did."""

    folder: Path
    seconds: float = 0.0

    def __call__(self) -> Work:
        return self.work

    def work(self, units: Iterable[int], advance: Advance) -> Iterator[tuple[int, int]]:
        """Unit after unit."""
        for unit in units:
            self.before(unit, advance)
            time.sleep(self.seconds)
            advance(unit)
            note(self.folder / str(unit), str(os.getpid()))
            yield unit, unit * unit

    def before(self, unit: int, advance: Advance) -> None:
        """What happens before a unit is done."""

    def done(self, unit: int) -> list[int]:
        """The processes that did a unit."""
        path = self.folder / str(unit)
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@dataclass(frozen=True)
class Cued(Noting):
    """Workers to which something happens over a unit, so many times; half of the unit is told before."""

    unit: int = 1
    times: int = 1
    act: Callable[[], object] = os.getpid

    def before(self, unit: int, advance: Advance) -> None:
        if unit == self.unit and self.tries() < self.times:
            note(self.folder / "tries", ".")
            advance(unit // 2)
            time.sleep(1.0)  # until somebody has asked
            self.act()

    def tries(self) -> int:
        """How often it has happened."""
        path = self.folder / "tries"
        return len(path.read_text().split()) if path.exists() else 0


def die() -> None:
    """As a kill, or a lack of memory, ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """The whole process stands still, and answers nobody."""
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep() -> None:
    """This thread stands still."""
    time.sleep(1000)


def refuse() -> None:
    """As a unit refuses."""
    raise ShardError("unit 1: refused")


def blunder() -> None:
    """As a bug does."""
    raise KeyError("a bug")


def unwilling() -> Work:
    """There is no worker to be had."""
    raise ShardError("no worker here")


def dying() -> Work:
    """Nor here."""
    die()
    raise AssertionError("alive")


def telling_where() -> Work:
    """Workers that say which folder they are in, and which GPUs and how many threads they have."""
    return lambda units, advance: (
        (unit, (os.getcwd(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"])) for unit in units
    )


def note(path: Path, line: str) -> None:
    """Append a line in one piece."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)
