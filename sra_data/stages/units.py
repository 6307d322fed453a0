"""Which units of a plan a job does: `--units a:b`, for arrays of jobs."""

from __future__ import annotations

import re

from sra_data.errors import ConfigError

FORM = re.compile(r"([0-9]{0,9}):([0-9]{0,9})")


def unit_range(units: str) -> tuple[int | None, int | None]:
    """``a:b`` as numbers, half-open; None for an end that is left out.

    Raises:
        ConfigError: If it is not of that form, or holds no unit.
    """
    found = FORM.fullmatch(units)
    if found is None:
        raise ConfigError(f"--units {units}: not of the form a:b; write, say, 0:8")
    start, stop = (int(number) if number else None for number in found.groups())
    if stop is not None and (start or 0) >= stop:
        raise ConfigError(f"--units {units}: holds no unit; write a:b with a below b")
    return start, stop
