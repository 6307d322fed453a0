"""What happens without a signal: a full disk, a folder that may not be written, one that is deleted, a clock gone mad.

Each command meets each of them, and ends in one line or with the right result, never with a traceback; once the
obstacle is gone the same command ends with what an undisturbed one leaves.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.process import carried_out
from tests.crash.world import Command, World, at_the

NOBODY = 65534


@dataclass
class Met:
    """Obstacles by their names, and what went wrong, a line each."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def meet(world: World, wanted: int, rng: random.Random, say: Callable[[str], None]) -> Met:
    """So many meetings; after twelve each command has met each obstacle."""
    met = Met()
    for number in range(wanted):
        command = world.commands[number % len(world.commands)]
        name = sorted(OBSTACLES)[number % len(OBSTACLES)]
        for line in OBSTACLES[name](world, command, rng):
            met.violations.append(f"{command.name}, {line}")
            say(f"VIOLATION {met.violations[-1]}")
        met.counts[name] += 1
        say(f"{command.name} has met: {name}")
    return met


def _fresh(world: World, command: Command) -> Path:
    folder = world.root / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    command.begin(folder)
    return folder


def _disturbed(world: World, command: Command, folder: Path, before: Callable[[], object], what: str) -> list[str]:
    """The command with something in its way: what is wrong with how it ended."""
    ended = carried_out(command.words(folder), world.log, before)
    if ended.code == 0 or ended.is_one_line:
        return []
    return [f"{what} {ended.last_words}"]


def _undisturbed(world: World, command: Command, folder: Path, what: str) -> list[str]:
    """The command again with nothing in its way: what is not as it should be."""
    ended = carried_out(command.words(folder), world.log)
    wrong = [ended.last_words] if ended.code != 0 else command.differences(folder, command.whole)
    return [f"after {what}: {line}" for line in wrong]


# --------------------------------------------------------------------------- a full disk


def full_disk(world: World, command: Command, rng: random.Random) -> list[str]:
    """No space from the n-th time on that a file is forced or renamed; or no file longer than so many bytes."""
    count, size = rng.randint(1, command.num_writes), int(10 ** rng.uniform(2, 5.3))
    if rng.random() < 0.5:
        before, what = _no_space(count), f"no space from write {count} on"
    else:
        before, what = _short_files(size), f"no file beyond {size} bytes"
    folder = _fresh(world, command)
    return _disturbed(world, command, folder, before, what) + _undisturbed(world, command, folder, what)


def _no_space(count: int) -> Callable[[], None]:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return at_the(count, refuse, and_after=True)


def _short_files(size: int) -> Callable[[], None]:
    def hook() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return hook


# --------------------------------------------------------------------------- a folder that may not be written


def read_only(world: World, command: Command, rng: random.Random) -> list[str]:
    """By somebody who may read everything and write nothing: before anything is made, in the middle, when all is."""
    count = rng.randint(1, command.num_writes)
    what = rng.choice(("nothing made", f"killed at write {count}", "all made"))
    folder = _fresh(world, command)
    if what == "all made":
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(command.whole, folder)
    elif what != "nothing made":
        carried_out(command.words(folder), world.log, _dies_at(count))
    folder.mkdir(exist_ok=True)
    _let_write(world.root, False)
    try:
        wrong = _disturbed(world, command, folder, become_nobody, f"read-only, {what}")
    finally:
        _let_write(world.root, True)
    return wrong + _undisturbed(world, command, folder, f"read-only, {what}")


def _let_write(root: Path, may: bool) -> None:
    """Whether what is in a folder may be written (by others than root) or only read."""
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode) | 0o444 | (0o111 if path.is_dir() else 0)
        path.chmod(mode | 0o200 if may else mode & ~0o222)


def become_nobody() -> None:
    """Root may write everywhere: go on as somebody who may not."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _dies_at(count: int) -> Callable[[], None]:
    return at_the(count, lambda: os.kill(os.getpid(), signal.SIGKILL))


# --------------------------------------------------------------------------- a folder that is gone


def deleted(world: World, command: Command, rng: random.Random) -> list[str]:
    """All deleted in the middle: what is made of the rest is refused or right, and right when it is made anew."""
    count = rng.randint(1, command.num_writes)
    folder, what = _fresh(world, command), f"deleted at write {count}"
    wrong = _disturbed(world, command, folder, _deletes_at(count, folder), what)
    wrong += _disturbed(world, command, folder, lambda: None, f"after {what}")
    return wrong + _undisturbed(world, command, _fresh(world, command), what)


def _deletes_at(count: int, folder: Path) -> Callable[[], None]:
    return at_the(count, lambda: shutil.rmtree(folder, ignore_errors=True))


# --------------------------------------------------------------------------- a clock


def clock_backwards(world: World, command: Command, rng: random.Random) -> list[str]:
    """Every clock goes back an hour at every look, or stands still."""
    step = rng.choice((3600.0, 0.0))
    folder, what = _fresh(world, command), f"every clock back by {step:.0f} s"
    ended = carried_out(command.words(folder), world.log, lambda: _turn_back(step))
    wrong = [ended.last_words] if ended.code != 0 else command.differences(folder, command.whole)
    return [f"{what}: {line}" for line in wrong]


def _turn_back(step: float) -> None:
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, _Backwards(getattr(time, name)(), step))


@dataclass
class _Backwards:
    """A clock that is earlier every time it is asked."""

    now: float
    step: float

    def __call__(self) -> float:
        self.now -= self.step
        return self.now


OBSTACLES: dict[str, Callable[[World, Command, random.Random], list[str]]] = {
    "full disk": full_disk,
    "read-only": read_only,
    "deleted": deleted,
    "clock backwards": clock_backwards,
}
