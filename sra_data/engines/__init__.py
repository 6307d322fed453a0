"""Who runs the units: every engine by its name.

The stages hand their units over here, with the name that the user gave, and know nothing else of an engine. Another one
is a module of this room of the form in `work.py`, its line in `ENGINES`, and its name in `sra_data/choices.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sra_data.engines import local, ray_cluster
from sra_data.engines.work import Advance, Engine, Needs, Team, UnitType, Work, num_cores

__all__ = ["ENGINES", "Advance", "Needs", "Team", "Work", "check", "num_cores", "run_units", "team"]

ENGINES: dict[str, Engine] = {"local": local, "ray": ray_cluster}


def team(engine: str, num_workers: int | None, needs: Needs) -> Team:
    """How the engine of that name would go about its units; see `Engine.team`."""
    return ENGINES[engine].team(num_workers, needs)


def check(engine: str, num_workers: int | None, needs: Needs) -> None:
    """Refuse what the engine of that name cannot do, before other work is begun; see `Engine.check`."""
    ENGINES[engine].check(num_workers, needs)


def run_units(
    units: Iterable[UnitType],
    make_worker: Callable[[], Work],
    *,
    engine: str,
    num_workers: int | None = None,
    advance: Advance | None = None,
    needs: Needs = Needs(),
) -> Iterator[tuple[UnitType, Any]]:
    """Do the units with the engine of that name; see `Engine.run_units`."""
    return ENGINES[engine].run_units(units, make_worker, num_workers=num_workers, advance=advance, needs=needs)
