"""The missing units of `cache-teacher`: here or in a pool, beside other processes that do the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch

from sra_data.engines import Needs, Work, check, run_units, team
from sra_data.shards.store import Unit, is_done
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.unit import MakeWorker
from sra_data.terminal import Task, bytes_in_words


def refuse_no_room(run: CacheRun) -> None:
    """Refuse what the engine cannot do, before a teacher is loaded.

    Raises:
        ConfigError: If it is not there, or has no room for so many workers.
    """
    check(run.options.engine, run.options.num_workers, _needs(run))


def do_units(run: CacheRun, missing: list[Unit]) -> int:
    """The missing units, with a live line, those last that other processes have claimed; returns how many it made."""
    if not missing:
        return 0
    total = sum(_num_tokens(run, unit) for unit in missing)
    with run.reporter.task(run.name, total=total, unit="tokens") as task:
        made = _Made(run, task, len(missing))
        claimed = made.add(_do(run, missing, task, waits=False))
        others = [unit for unit in claimed if not is_done(run.folder, unit)]
        made.count(unit for unit in claimed if unit not in others)
        if others:
            run.reporter.line(f"waiting for {len(others)} units that other processes have claimed")
            made.count(made.add(_do(run, others, task, waits=True)))
        return made.num_units


def _do(
    run: CacheRun, units: Sequence[Unit], task: Task, *, waits: bool
) -> Iterator[tuple[Unit, dict[str, Any] | None]]:
    options, needs = run.options, _needs(run)
    crew = team(options.engine, options.num_workers, needs)
    with ExitStack() as stack:

        def here() -> Work:  # where the teacher is at hand
            return stack.enter_context(closing(run.worker(waits=waits))).run

        elsewhere = MakeWorker(run.settings, min(torch.get_num_threads(), crew.threads), waits)
        if not crew.is_here:
            run.let_go()
        yield from run_units(
            units,
            here if crew.is_here else elsewhere,
            engine=options.engine,
            num_workers=options.num_workers,
            advance=lambda tokens: task.advance(tokens),
            needs=needs,
        )


def _needs(run: CacheRun) -> Needs:
    """A GPU for each worker, where the teacher runs on one and nobody has said on which."""
    return Needs(gpus=1 if run.settings.teacher.device == "cuda" else 0)


@dataclass
class _Made:
    """What is told while units are made: how far it is, and what a token costs."""

    run: CacheRun
    task: Task
    num_all: int
    num_units: int = 0
    num_others: int = 0
    num_bytes: int = 0
    num_positions: int = 0

    def add(self, done: Iterable[tuple[Unit, dict[str, Any] | None]]) -> list[Unit]:
        """Tell of each unit as it is made; returns those that other processes made or have claimed."""
        left = []
        for unit, notes in done:
            if notes is None:
                left.append(unit)
                continue
            self.num_units += 1
            self.num_bytes += notes["bytes"]
            self.num_positions += notes["positions"]
            self._tell()
        return left

    def count(self, made_by_others: Iterable[Unit]) -> None:
        """Units that are there and were not made here."""
        for unit in made_by_others:
            self.num_others += 1
            self.task.advance(_num_tokens(self.run, unit))
            self._tell()

    def _tell(self) -> None:
        self.task.advance(
            0,
            units=f"{self.num_units + self.num_others}/{self.num_all}",
            bytes_per_token=f"{self.num_bytes / max(self.num_positions, 1):,.0f}",
            disk_free=bytes_in_words(shutil.disk_usage(self.run.folder).free),
        )


def _num_tokens(run: CacheRun, unit: Unit) -> int:
    return int(run.examples.num_tokens[unit.start : unit.stop].sum())
