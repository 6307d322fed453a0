"""`cache-teacher` beside others that do the same: what they have claimed comes last and is not made twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_data.shards.manifest import Manifest, Plan, Receipt
from sra_data.shards.seal import seal as seal_folder
from sra_data.shards.store import claimed
from sra_data.stages.cache import stage
from sra_data.stages.cache.stage import cache_teacher
from sra_data.terminal import Reporter
from tests.unit.shards.test_claims import Child
from tests.unit.stages.cache.worlds import World


class Kills(Reporter):
    """Kills a process when it is said that others are waited for."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)
        if text.startswith("waiting for"):
            self.child.kill()


def parts_of(world: World) -> list[bytes]:
    return [path.read_bytes() for path in sorted(world.shards.glob("teachers/*/part-*.parquet"))]


def folder_of(world: World) -> Path:
    (folder,) = (world.shards / "teachers").iterdir()
    return folder


def claiming_the_first(folder: Path) -> Child:
    """A process that has claimed the first unit and will never do it."""

    def hold(pause) -> None:
        with claimed(folder, Plan.load(folder).units[0]):
            pause()

    child = Child(hold)
    child.wait_until_it_has_begun()
    return child


@pytest.mark.parametrize("num_workers", [1, 2])
def test_units_that_another_has_claimed_come_last_and_are_made_if_it_dies(world: World, num_workers: int) -> None:
    cache_teacher(world.options(), Reporter())
    before = parts_of(world)
    for path in folder_of(world).glob("part-*"):
        path.unlink()
    reporter = Kills(claiming_the_first(folder_of(world)))
    summary = cache_teacher(world.options(num_workers=num_workers), reporter)
    assert "waiting for 1 units that other processes have claimed" in reporter.said
    assert (summary.num_done, summary.num_missing) == (3, 0)
    assert parts_of(world) == before


def test_what_another_made_meanwhile_is_neither_made_nor_counted(world: World, monkeypatch) -> None:
    cache_teacher(world.options(), Reporter())
    folder, name = folder_of(world), "part-00001.receipt.json"
    receipt = Receipt.load(folder, 1)
    (folder / name).unlink()
    original = stage.do_units

    def another_is_first(run, missing):
        assert [unit.part for unit in missing] == [1]
        receipt.save(folder)
        return original(run, missing)

    monkeypatch.setattr(stage, "do_units", another_is_first)
    summary = cache_teacher(world.options(), Reporter())
    assert (summary.num_done, summary.num_missing) == (0, 0)
    assert Receipt.load(folder, 1) == receipt
    assert summary.root is not None


def test_a_folder_that_another_has_sealed_is_not_sealed_or_measured_again(world: World, monkeypatch) -> None:
    sealed = []

    def seal(*arguments):
        sealed.append(arguments[1])
        return seal_folder(*arguments)

    monkeypatch.setattr(stage, "seal", seal)
    cache_teacher(world.options(), Reporter())
    facts = Manifest.load(world.shards).sealed(sealed[0])
    cache_teacher(world.options(), Reporter())
    assert len(sealed) == 1
    assert Manifest.load(world.shards).sealed(sealed[0]) == facts
