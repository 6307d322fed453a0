"""What an engine is: units and what makes a worker go in, each unit comes out with its result once it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

UnitType = TypeVar("UnitType")
Advance = Callable[[int], None]
Work = Callable[[Any, Advance], Any]


class RunUnits(Protocol):
    """The form of every engine."""

    def __call__(
        self,
        units: Iterable[UnitType],
        make_worker: Callable[[], Work],
        *,
        num_workers: int = 1,
        advance: Advance | None = None,
    ) -> Iterator[tuple[UnitType, Any]]:
        """Do the units, yielding each with its result as it is done.

        Args:
            units: in the order they are started.
            make_worker: makes the function that does one unit: `work(unit, advance)`; called once for each of several
                workers, who share nothing; it must be picklable where there are several.
            num_workers: 1 works in this process.
            advance: told how much was done while it is done (at the latest when a unit is finished).

        Raises:
            ConfigError: For fewer than one worker.
            Whatever a unit raises, after which no further unit is started.
        """
        ...
