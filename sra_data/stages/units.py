"""Which units of a plan a job does: `--units a:b`, or `--units i/n` for task i of an array of n jobs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sra_data.errors import ConfigError

FORM = re.compile(r"([0-9]{0,9}):([0-9]{0,9})")
SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def unit_range(units: str, num_units: int = 0) -> tuple[int | None, int | None]:
    """``a:b`` as numbers, half-open, None for an end that is left out; ``i/n`` as the i-th of n even shares.

    The shares of an array follow one another, cover every unit once, and differ by one unit at most; one of them may
    hold none, where there are more tasks than units.

    Args:
        units: as asked.
        num_units: of the plan, of which a share is taken.

    Raises:
        ConfigError: If it is of neither form, holds no unit, or is no task of its array.
    """
    share = SHARE.fullmatch(units)
    if share is not None:
        return _share(int(share[1]), int(share[2]), num_units)
    found = FORM.fullmatch(units)
    if found is None:
        raise ConfigError(
            f"--units {units}: not of the form a:b; write, say, 0:8, or 3/16 for task 3 of an array of 16"
        )
    start, stop = (int(number) if number else None for number in found.groups())
    if stop is not None and (start or 0) >= stop:
        raise ConfigError(f"--units {units}: holds no unit; write a:b with a below b")
    return start, stop


def said_of(units: Sequence[int], num_units: int) -> str:
    """Which units a job does, for its log."""
    which = f"units {units[0]}:{units[-1] + 1}" if units else "none of the units"
    return f"{which} of 0:{num_units}"


def _share(task: int, num_tasks: int, num_units: int) -> tuple[int, int]:
    if task >= num_tasks:
        raise ConfigError(
            f"--units {task}/{num_tasks}: no such task, those of an array of {num_tasks} are 0 to {num_tasks - 1}; "
            "begin the array with 0, or say how many it was cut for"
        )
    return task * num_units // num_tasks, (task + 1) * num_units // num_tasks
