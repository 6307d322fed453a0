"""Who runs the units: every engine by its name, and the one that is asked.

The stages hand their units over here and know no engine. Another one is a module of this room with a `run_units` of the
form in `work.py`, and its line in `ENGINES`; `ENGINE` says which of them runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sra_data.engines import local
from sra_data.engines.work import Advance, RunUnits, UnitType, Work

__all__ = ["ENGINE", "ENGINES", "Advance", "Work", "run_units"]

ENGINES: dict[str, RunUnits] = {"local": local.run_units}
ENGINE = "local"


def run_units(
    units: Iterable[UnitType], make_worker: Callable[[], Work], *, num_workers: int = 1, advance: Advance | None = None
) -> Iterator[tuple[UnitType, Any]]:
    """Do the units with the chosen engine; see `RunUnits`."""
    return ENGINES[ENGINE](units, make_worker, num_workers=num_workers, advance=advance)
