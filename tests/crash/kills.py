"""Signals at random moments, alone and two at a time: then the command is run to its end, and nothing tells.

Half of the signals come at a moment of the clock, drawn between 0 and what the whole takes; half where the process is
about to force a file to disk or to rename one, the n-th time, n drawn: that is where a crash could hurt.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.process import Ended, Process
from tests.crash.world import Command, World, at_the

NUMBERS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SHARES = {"align": 4, "cache-teacher": 4, "run": 2}  # of the trials
MOST_ROUNDS = 3  # of disturbed calls on one folder


@dataclass
class Killed:
    """What has been counted.

    Attributes:
        kills: processes that a signal has ended, by command and signal.
        late: processes that were done before their signal came.
        trials: folders that were then brought to their end.
        violations: a line each.
    """

    kills: dict[str, int] = field(default_factory=dict)
    late: int = 0
    trials: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        """All of them."""
        return sum(self.kills.values())


def kill(world: World, wanted: int, rng: random.Random, say: Callable[[str], None]) -> Killed:
    """Trials until so many processes were ended by a signal."""
    found = Killed()
    names = [command for command in world.commands for _ in range(SHARES[command.name])]
    while found.num_kills < wanted:
        before = len(found.violations)
        _trial(world, rng.choice(names), rng, found)
        for line in found.violations[before:]:
            say(f"VIOLATION {line}")
        if found.trials % 5 == 0:
            say(f"kills {found.num_kills} of {wanted}, {found.trials} folders, violations {len(found.violations)}")
    return found


def _trial(world: World, command: Command, rng: random.Random, found: Killed) -> None:
    """A folder, some disturbed calls on it, one or two to the end, and what is wrong then."""
    folder = world.root / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    command.begin(folder)
    where = f"trial {found.trials}, {command.name}"
    told = [_round(world, command, folder, rng, found, where) for _ in range(rng.randint(1, MOST_ROUNDS))]
    at_once = rng.randint(1, 2) if command.shares_work else 1
    last = [Process(command.words(folder), world.root / f"log-{place}") for place in range(at_once)]
    wrong = [ended.last_words for ended in [process.wait() for process in last] if ended.code != 0]
    wrong = wrong or command.differences(folder, command.whole)
    if not wrong and command.name != "run" and (said := world.verified(folder)):
        wrong = [said]
    found.violations += [f"{where} after {'; '.join(told)}: {line}" for line in wrong]
    found.trials += 1


def _round(world: World, command: Command, folder: Path, rng: random.Random, found: Killed, where: str) -> str:
    """One or two processes at once, of which one at least is sent a signal; what was done, in words."""
    at_once = rng.randint(1, 2)
    signals = [rng.choice(NUMBERS) if place == 0 or rng.random() < 0.5 else None for place in range(at_once)]
    running: list[Process] = []
    due: list[tuple[float, Process, int]] = []
    told: list[str] = []
    started = time.monotonic()
    for place, number in enumerate(signals):
        hook, moment = None, None
        if number is not None and rng.random() < 0.5:
            count = rng.randint(1, command.num_writes)
            hook, word = _at_write(number, count), f"{signal.Signals(number).name} at write {count}"
        elif number is not None:
            moment = rng.uniform(0, command.seconds * at_once)
            word = f"{signal.Signals(number).name} after {moment:.3f} s"
        else:
            word = "undisturbed"
        process = Process(command.words(folder), world.root / f"log-{place}", before=hook)
        running.append(process)
        told.append(word)
        if number is not None and moment is not None:
            due.append((started + moment, process, number))
    for moment, process, number in sorted(due, key=lambda one: one[0]):
        time.sleep(max(0.0, moment - time.monotonic()))
        process.send(number)
    for process, number in zip(running, signals, strict=True):
        ended = process.wait()
        if number is not None and is_by(ended, number):
            name = f"{command.name} {signal.Signals(number).name}"
            found.kills[name] = found.kills.get(name, 0) + 1
        elif ended.code == 0:
            found.late += number is not None
        elif command.shares_work or not ended.is_one_line:
            found.violations.append(f"{where}, {' and '.join(told)}: {ended.last_words}")
    return " and ".join(told)


def is_by(ended: Ended, number: int) -> bool:
    """Whether a process ended as one should that got the signal: at once, or in one line that says how to go on."""
    if number == signal.SIGKILL:
        return ended.code == -signal.SIGKILL
    lines = ended.said.strip().splitlines()
    return ended.code == 130 and "Traceback" not in ended.said and lines[-1].startswith("interrupted; ")


def _at_write(number: int, count: int) -> Callable[[], None]:
    """Makes the process send itself the signal when it forces or renames a file for the `count`-th time."""
    return at_the(count, lambda: os.kill(os.getpid(), number))
