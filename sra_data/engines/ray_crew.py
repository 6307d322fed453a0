"""The actors of a Ray cluster that do units, and what the driver knows of each: its unit, how far it is, if it lives.

A unit is given to an actor that has made its worker, never to one that waits for a machine. An actor that is lost or
hangs is replaced, and its unit is done again; a unit that loses several actors is given up, for then it is the unit's
fault, and so is the run where none can be started.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

from sra_data.engines.work import Advance, UnitType, Work, result_of
from sra_data.errors import ConfigError, SRAError

# Seconds without a sign of progress after which an actor counts as hanging. A batch takes seconds; what can take long
# is a unit that another process has claimed, and the loading of a large teacher from a slow disk.
HANGS_AFTER = 1800.0
LOADS_FOR = 7200.0
MOST_LOST = 3  # actors that one unit may cost, or the beginning
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_DIE = 10.0
# Where models are found: what the driver was told, unless a machine has been told otherwise.
HANDED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")


class Actor:
    """Lives in a process of the cluster: a worker made once, and what it has done so far.

    `begin` or `do`, and `progress`, run in two threads, so that whoever works can be asked how far it is.
    """

    def __init__(self, packed: bytes, folder: str, surroundings: Mapping[str, str]) -> None:
        """Keep what makes the worker, still packed; `folder` is the driver's, which relative paths count from."""
        self.packed = packed
        self.folder = folder
        self.surroundings = surroundings
        self.work: Work | None = None
        self.done = 0
        self.signs = 0  # of life

    def begin(self) -> Exception | None:
        """Make the worker; what goes wrong comes back as a value, so that it arrives as it is."""
        try:
            for name, value in self.surroundings.items():
                os.environ.setdefault(name, value)  # libraries read them when they are imported, which is now
            try:
                os.chdir(self.folder)
            except OSError as error:
                raise ConfigError(
                    f"{self.folder}: {error.strerror} on machine {os.uname().nodename}; with --engine ray every "
                    "machine must see the driver's folder, the data and the shards under the same paths"
                ) from None
            self.work = ForkingPickler.loads(self.packed)()
        except Exception as error:
            return _with_its_traceback(error)
        return None

    def do(self, unit: Any) -> tuple[Any, Exception | None, int]:
        """A unit's result, or what it raised, and all that was done so far."""
        assert self.work is not None
        try:
            return result_of(self.work, unit, self._advance), None, self.done
        except Exception as error:
            return None, _with_its_traceback(error), self.done

    def _advance(self, amount: int) -> None:
        self.done += amount
        self.signs += 1

    def progress(self) -> tuple[int, int]:
        """All that was done so far, and how often something was."""
        return self.done, self.signs


def _with_its_traceback(error: Exception) -> Exception:
    """A bug keeps its traceback, which does not travel with it."""
    if not isinstance(error, SRAError):
        error.add_note(traceback.format_exc())
    return error


@dataclass(eq=False)
class _Member:
    """An actor as the driver knows it.

    Attributes:
        actor: its handle.
        task: the answer that is awaited: of its beginning or of its unit; None for one that waits for a unit.
        asked: an answer about its progress that is on its way.
        place: of its unit in the order of units; None while it begins.
        told: what it has done, as it said.
        before: of that, before its unit.
        signs: see `Actor.progress`.
        seen: when it last made progress; None until it first answers, for it may wait for a machine.
        hired: when it was asked for.
    """

    actor: Any
    task: Any
    asked: Any
    place: int | None = None
    told: int = 0
    before: int = 0
    signs: int = 0
    seen: float | None = None
    hired: float = field(default_factory=time.monotonic)

    def begin(self, place: int, unit: Any) -> None:
        """Give it a unit to do."""
        self.place, self.before, self.seen = place, self.told, time.monotonic()
        self.task = self.actor.do.remote(unit)

    @property
    def patience(self) -> float:
        """Seconds that it may go without progress."""
        return LOADS_FOR if self.place is None else HANGS_AFTER


@dataclass
class Crew:
    """The actors, each with `cpus` cores and `gpus` GPUs of its own.

    Attributes:
        ray: the module, connected.
        make_worker: what each makes its worker by; packed as for a process of a pool.
        advance: told what is done.
    """

    ray: Any
    make_worker: Callable[[], Work]
    advance: Advance
    cpus: float
    gpus: int
    members: list[_Member] = field(default_factory=list)

    def do(self, units: Iterable[UnitType], count: int) -> Iterator[tuple[UnitType, Any]]:
        """Every unit, by at most `count` actors.

        Raises:
            SRAError: If a unit has cost too many actors, or none could be started.
            Whatever a unit or the making of a worker raises.
        """
        everything = list(units)
        waiting = deque(range(len(everything)))
        lost: dict[int | None, int] = {}  # place of a unit (None: the beginning) -> actors it has cost in a row
        hire = self._hiring()
        while waiting or any(member.place is not None for member in self.members):
            while len(self.members) < min(count, len(waiting) + self._num_busy()):
                self.members.append(hire())
            for member in [one for one in self.members if one.task is None]:
                if waiting and self._look(member):
                    place = waiting.popleft()
                    member.begin(place, everything[place])
            lose = partial(self._lose, waiting=waiting, lost=lost, units=everything)
            for member in self._answered():
                done = member.place
                try:
                    answer = self.ray.get(member.task)
                except self.ray.exceptions.RayError as error:
                    lose(member, f"died ({_first_line(error)})")
                    continue
                result = self._taken(member, answer)
                lost.pop(None, None)
                if done is not None:
                    yield everything[done], result
            self._refuse_no_machine()
            for member in self._hanging():
                lose(member, f"made no progress for {member.patience:.0f} s")

    def _hiring(self) -> Callable[[], _Member]:
        """What starts an actor."""
        kind = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, max_concurrency=2)(Actor)
        packed = self.ray.put(bytes(ForkingPickler.dumps(self.make_worker)))
        told = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        folder = os.getcwd()

        def hire() -> _Member:
            actor = kind.remote(packed, folder, told)
            return _Member(actor, actor.begin.remote(), actor.progress.remote())

        return hire

    def _num_busy(self) -> int:
        return sum(member.place is not None for member in self.members)

    def _answered(self) -> list[_Member]:
        """Those whose answer has come, once one has or it is time to look at them all."""
        tasks = {member.task: member for member in self.members if member.task is not None}
        if not tasks:
            return []
        self.ray.wait(list(tasks), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
        for member in list(self.members):
            self._look(member)
        done, _ = self.ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
        return [tasks[task] for task in done]

    def _look(self, member: _Member) -> bool:
        """Take in what an actor says of its progress, and ask again; whether it may be given a unit.

        One that has died over a unit is found by the unit's answer, one that has died over none is forgotten.
        """
        if not self.ray.wait([member.asked], timeout=0)[0]:
            return True
        try:
            told, signs = self.ray.get(member.asked)
        except self.ray.exceptions.RayError:
            if member.task is None:
                self.members.remove(member)
            return False
        if signs > member.signs or member.seen is None:
            member.signs, member.seen = signs, time.monotonic()
        self._advance_to(member, told)
        member.asked = member.actor.progress.remote()
        return True

    def _advance_to(self, member: _Member, told: int) -> None:
        if told > member.told:
            self.advance(told - member.told)
            member.told = told

    def _taken(self, member: _Member, answer: Any) -> Any:
        """A unit's result, of an actor that is free from now on."""
        result, error, told = answer if member.place is not None else (None, answer, 0)
        self._advance_to(member, told)
        if error is not None:
            raise error
        member.task = member.place = None
        return result

    def _hanging(self) -> list[_Member]:
        now = time.monotonic()
        working = (member for member in self.members if member.task is not None and member.seen is not None)
        return [member for member in working if now - member.seen > member.patience]  # type: ignore[operator]

    def _refuse_no_machine(self) -> None:
        """Wait for machines no longer than for a teacher.

        Raises:
            SRAError: If there has been no room for any actor for so long.
        """
        now = time.monotonic()
        if self.members and all(one.seen is None and now - one.hired > LOADS_FOR for one in self.members):
            raise SRAError(
                f"--engine ray: for {LOADS_FOR:.0f} s the cluster has had no room for a worker; see `ray status` for "
                "who holds it, then run the same command again: finished units are kept"
            )

    def _lose(
        self, member: _Member, how: str, *, waiting: deque[int], lost: dict[int | None, int], units: list[Any]
    ) -> None:
        """Take leave of an actor; its unit is the next to be done, and what it told of it is taken back.

        Raises:
            SRAError: If its unit, or the beginning, has cost too many.
        """
        self.members.remove(member)
        self.ray.kill(member.actor)
        if member.told > member.before:
            self.advance(member.before - member.told)
        place = member.place
        if place is not None:
            waiting.appendleft(place)
        lost[place] = lost.get(place, 0) + 1
        if lost[place] >= MOST_LOST:
            what = "no worker of Ray begins" if place is None else getattr(units[place], "name", units[place])
            raise SRAError(
                f"{what}: {MOST_LOST} workers were lost over it, the last one {how}; finished units are kept: look at "
                "the machines' memory and logs, then run the same command again"
            )

    def dismiss(self) -> None:
        """End all actors, at once (a unit half done is done again), and wait until they have given back their GPUs."""
        for member in self.members:
            self.ray.kill(member.actor)
        last_words = [member.actor.progress.remote() for member in self.members]
        if last_words:
            self.ray.wait(last_words, num_returns=len(last_words), timeout=SECONDS_TO_DIE)
        self.members.clear()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:200]
