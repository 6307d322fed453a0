"""Signals to commands with `--workers 2`: to the one that the user started, or to one of its workers.

A worker is a fresh interpreter that loads tokenizers or a teacher, seconds long; so there are few of these trials, and
the moments of their signals are drawn from all that a pool takes. Nobody may outlive the command: a worker that waits
for ever keeps a teacher in memory.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.crash.kills import NUMBERS, Killed, is_by
from tests.crash.process import Process
from tests.crash.world import Command, World

POOL = ("--workers", 2)
SECONDS_TO_GO = 60.0  # after its parent's end a worker is to be gone; it may have little of a core


def kill_pools(world: World, wanted: int, rng: random.Random, say: Callable[[str], None]) -> Killed:
    """So many trials, `align` and `cache-teacher` in turn."""
    found = Killed()
    commands = [command for command in world.commands if command.shares_work]
    took = {command.name: _undisturbed(world, command, found) for command in commands[:wanted]}
    for number in range(wanted):
        before = len(found.violations)
        command = commands[number % len(commands)]
        _trial(world, command, took[command.name], rng, found)
        for line in found.violations[before:]:
            say(f"VIOLATION {line}")
    return found


def _undisturbed(world: World, command: Command, found: Killed) -> float:
    """Seconds that a pool takes; what it leaves is what one process leaves."""
    folder = _begin(world, command)
    started = time.monotonic()
    ended = Process([*command.words(folder), *POOL], world.log).wait()
    wrong = [ended.last_words] if ended.code != 0 else command.differences(folder, command.whole)
    found.violations += [f"a pool of {command.name}, undisturbed: {line}" for line in wrong]
    return time.monotonic() - started


def _begin(world: World, command: Command) -> Path:
    folder = world.root / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    command.begin(folder)
    return folder


def _trial(world: World, command: Command, seconds: float, rng: random.Random, found: Killed) -> None:
    """One signal; then nobody is left, and one undisturbed process brings the folder to its end."""
    folder = _begin(world, command)
    process = Process([*command.words(folder), *POOL], world.log)
    moment, number, to_worker = rng.uniform(0, seconds), rng.choice(NUMBERS), rng.random() < 0.4
    time.sleep(moment)
    family = descendants(process.pid)
    workers = [pid for pid in family if b"spawn_main" in _command_line(pid)]
    if to_worker and workers:
        number = signal.SIGKILL
        os.kill(rng.choice(workers), number)
        word = f"a worker's SIGKILL after {moment:.3f} s"
    else:
        to_worker = False
        process.send(number)
        word = f"{signal.Signals(number).name} after {moment:.3f} s"
    ended = process.wait()
    wrong = []
    if (not to_worker and is_by(ended, number)) or (to_worker and ended.is_one_line):
        name = f"{command.name}, {'a worker' if to_worker else 'pool'} {signal.Signals(number).name}"
        found.kills[name] = found.kills.get(name, 0) + 1
    elif ended.code == 0:
        found.late += 1
    else:
        wrong.append(ended.last_words)
    wrong += [f"outlived by {line}" for line in outliving(family, SECONDS_TO_GO)]
    last = Process(command.words(folder), world.log).wait()
    wrong += [last.last_words] if last.code != 0 else command.differences(folder, command.whole)
    found.violations += [f"trial {found.trials}, a pool of {command.name} after {word}: {line}" for line in wrong]
    found.trials += 1


def descendants(pid: int) -> dict[int, str]:
    """Processes below one, each with the moment of its start: a number may be given to another later."""
    parents: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(path.parent.name)] = (int(fields[1]), fields[19])
    found: dict[int, str] = {}
    generation = {pid}
    while generation:
        generation = {child for child, (parent, _) in parents.items() if parent in generation}
        found |= {child: parents[child][1] for child in generation}
    return found


def outliving(family: dict[int, str], seconds: float) -> list[str]:
    """Command lines of those that are still there after so many seconds; they are killed then."""
    until = time.monotonic() + seconds
    left = family
    while left and time.monotonic() < until:
        left = {pid: start for pid, start in left.items() if _started(pid) == start}
        time.sleep(0.05)
    said = [_command_line(pid).replace(b"\0", b" ").decode(errors="replace")[:200] for pid in left]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return said


def _started(pid: int) -> str | None:
    """When a process began; None where it is gone, or dead and not yet taken note of."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
