"""What an engine is: units and what makes a worker go in, each unit comes out with its result once it is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sra_data.errors import ConfigError

UnitType = TypeVar("UnitType")
Advance = Callable[[int], None]
# Does units one after the other, each with its result once it is done; what it overlaps is its own affair.
Work = Callable[[Iterable[Any], Advance], Iterator[tuple[Any, Any]]]


@dataclass(frozen=True)
class Needs:
    """What one worker takes of a machine.

    Attributes:
        cpus: Cores.
        gpus: GPUs that are its own; 0 for work of the CPU.
        worth: How many workers pay on one machine, where nobody says how many there shall be.
    """

    cpus: float = 1
    gpus: int = 0
    worth: int = 1


@dataclass(frozen=True)
class Team:
    """How an engine would go about its units.

    Attributes:
        is_here: By one worker in this very process; what it needs may be at hand already.
        threads: Cores that each worker has to itself.
    """

    is_here: bool
    threads: int


class Engine(Protocol):
    """The form of every engine: what each module of this room has that is one."""

    def team(self, num_workers: int | None, needs: Needs) -> Team:
        """How it would go about its units; asks nobody."""
        ...

    def check(self, num_workers: int | None, needs: Needs) -> None:
        """Refuse what `run_units` would, as far as it can be known in seconds, before other work is begun.

        Raises:
            ConfigError: For fewer than one worker, an engine that is not installed or cannot be reached, or more
                workers than there is room for.
        """
        ...

    def run_units(
        self,
        units: Iterable[UnitType],
        make_worker: Callable[[], Work],
        *,
        num_workers: int | None = None,
        advance: Advance | None = None,
        needs: Needs = Needs(),
    ) -> Iterator[tuple[UnitType, Any]]:
        """Do the units, yielding each with its result as it is done.

        Args:
            units: in the order they are started.
            make_worker: makes what does units, `work(units, advance)`: all of them where one worker is here, else one
                at a time; called once for each of several workers, who share nothing; it must be picklable where they
                are not here.
            num_workers: how many; None leaves it to the engine.
            advance: told how much was done while it is done (at the latest when a unit is finished); what is taken
                back, because a unit's worker was lost, is told as less than nothing.
            needs: what each worker takes.

        Raises:
            ConfigError: As `check` does.
            Whatever a unit raises, after which no further unit is started.
        """
        ...


def result_of(work: Work, unit: Any, advance: Advance) -> Any:
    """The result of one unit, done alone."""
    ((_, result),) = work([unit], advance)
    return result


def refuse_no_workers(num_workers: int | None) -> None:
    """Refuse fewer than one worker.

    Raises:
        ConfigError: For them.
    """
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"--workers {num_workers}: must be at least 1")


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def counted(number: float, what: str) -> str:
    """A number of things in words: 1 GPU, 2 GPUs, 0.5 cores."""
    return f"{number:g} {what}{'' if number == 1 else 's'}"
