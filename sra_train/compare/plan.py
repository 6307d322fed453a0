"""Which runs a comparison is made of: pure functions of what was asked for, no file and no clock.

A run is known by its method, its point of the grid, its seed and, where it only chooses a rate, its number of steps;
its folder is named after these, so that a comparison asked for again finds what it has done.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from sra_data.errors import ConfigError
from sra_train.config import PRESETS, YARDSTICK, ablation_called

DEFAULT_METHODS = "sft,sra"
MOST_SEEDS = 1000  # beyond it a seed count is a typing error


@dataclass(frozen=True)
class Entry:
    """One method of a comparison.

    Attributes:
        name: of a method or a preset, as it was asked for; names the row of the table.
        settings: dotted name -> value, what it stands for.
        num_seeds: how many seeds it is run with.
    """

    name: str
    settings: Mapping[str, Any] = field(hash=False)
    num_seeds: int


@dataclass(frozen=True)
class Point:
    """A point of the grid; `clip` is None where the setting's own is used."""

    rate: float
    clip: float | None = None

    def __str__(self) -> str:
        return f"lr-{self.rate:g}" + ("" if self.clip is None else f"-clip-{self.clip:g}")

    @property
    def words(self) -> str:
        """For people."""
        return f"rate {self.rate:g}" + ("" if self.clip is None else f", clipped at {self.clip:g}")


@dataclass(frozen=True)
class RunKey:
    """One run; `steps` is None where it is whole."""

    method: str
    point: Point
    seed: int
    steps: int | None = None

    @property
    def folder(self) -> PurePosixPath:
        """Below the comparison's."""
        last = f"seed-{self.seed}" + ("" if self.steps is None else f"-steps-{self.steps}")
        return PurePosixPath("runs", self.method, str(self.point), last)

    @property
    def words(self) -> str:
        """For people."""
        steps = "" if self.steps is None else f", {self.steps} steps"
        return f"{self.method}, {self.point.words}, seed {self.seed}{steps}"


def entries_of(
    methods: str | None, ablation: str | None, *, seeds: int, known: Collection[str]
) -> tuple[list[Entry], dict[str, tuple[str, ...]]]:
    """The methods of a comparison, and the tables they are shown in besides the one of all of them.

    Args:
        methods: names with commas, each with its own number of seeds or none: ``sft,sra:3``.
        ablation: in place of them.
        seeds: of those that do not say.
        known: names of the registered methods.

    Raises:
        ConfigError: For an unknown or repeated name, a number of seeds that is none, or both of the two ways.
    """
    check_seeds(f"--seeds {seeds}", seeds)
    if methods is not None and ablation is not None:
        raise ConfigError("--methods and --ablation: two ways to name the same; leave one of them out")
    tables = {} if ablation is None else ablation_called(ablation)
    if ablation is None:
        words = [word.strip() for word in (methods or DEFAULT_METHODS).split(",") if word.strip()]
    else:
        words = list(dict.fromkeys([YARDSTICK, *(name for rows in tables.values() for name in rows)]))
    found = [entry_of(word, seeds=seeds, known=known) for word in words]
    if not found:
        raise ConfigError(f"--methods {methods}: names nothing; write --methods {DEFAULT_METHODS}")
    names = [entry.name for entry in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--methods {methods}: {twice} is named twice; name it once")
    return found, tables


def entry_of(word: str, *, seeds: int, known: Collection[str]) -> Entry:
    """One word of `--methods`.

    Raises:
        ConfigError: If it names neither a method nor a preset, or its number of seeds is none.
    """
    name, colon, count = word.partition(":")
    if colon:
        seeds = check_seeds(f"--methods {word}", count)
    if name in PRESETS:
        return Entry(name, PRESETS[name].settings, seeds)
    if name in known:
        return Entry(name, {"method.name": name}, seeds)
    raise ConfigError(
        f"--methods {name}: neither a method ({', '.join(sorted(known))}) nor a preset ({', '.join(PRESETS)});"
        " `sra-train compare --list-methods` says what each is"
    )


def check_seeds(where: str, count: int | str) -> int:
    """A number of seeds.

    Raises:
        ConfigError: If it is no positive number.
    """
    if not str(count).isdecimal() or not 1 <= int(count) <= MOST_SEEDS:
        raise ConfigError(
            f"{where}: {'nothing' if count == '' else count} is no positive number of seeds; write a number such as 5"
        )
    return int(count)


def grid_of(rates: Sequence[float], clips: Sequence[float]) -> list[Point]:
    """Every rate with every clip: the same points for all methods.

    Raises:
        ConfigError: If there is no rate, or a value is not positive or stands twice.
    """
    if not rates:
        raise ConfigError("--rates: no rate given; write --rates 3e-4,1e-3,3e-3")
    for flag, values in (("--rates", rates), ("--clips", clips)):
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{flag}: {value:g} is not a positive number; write numbers such as 1e-3")
        if len({f"{value:g}" for value in values}) < len(values):
            listed = ",".join(f"{value:g}" for value in values)
            raise ConfigError(f"{flag} {listed}: two of them are the same; name each once")
    return [Point(rate, clip) for rate in rates for clip in (clips or (None,))]


def tuning_runs(method: str, grid: Sequence[Point], *, seed: int, steps: int | None) -> list[RunKey]:
    """One run for each point; a whole one where there is nothing to choose, which is needed anyway."""
    return [RunKey(method, point, seed, steps if len(grid) > 1 else None) for point in grid]


def seed_runs(entry: Entry, point: Point, *, first_seed: int) -> list[RunKey]:
    """The runs that are reported: a tuning run with whole steps is the first of them."""
    return [RunKey(entry.name, point, first_seed + number) for number in range(entry.num_seeds)]
