"""A unit that is written while the next one is said: the same bytes, in the same order, and nothing claimed is left."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sra_data.errors import ModelError, ShardError
from sra_data.shards.store import Manifest, ShardSet
from sra_data.stages.cache import parts as parts_module
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.stage import cache_teacher
from sra_data.stages.cache.unit import CacheWorker
from sra_data.terminal import Reporter
from tests.unit.stages.cache.test_cache import copy_of, folder_of, pages
from tests.unit.stages.cache.worlds import World


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    original = CacheWorker.__init__

    def begin(self: CacheWorker, *arguments: object, **options: object) -> None:
        original(self, *arguments, **options)  # type: ignore[arg-type]
        assert not self.writes_beside, "on a CPU both would want the cores"
        self.writes_beside = True

    monkeypatch.setattr(CacheWorker, "__init__", begin)


def test_the_bytes_are_those_of_one_after_the_other(world: World, tmp_path: Path, monkeypatch, beside) -> None:
    other = copy_of(world, tmp_path / "other")
    threads: list[str] = []
    original = parts_module.write_part

    def write_part(*arguments: object, **options: object) -> object:
        threads.append(threading.current_thread().name)
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(parts_module, "write_part", write_part)
    assert cache_teacher(other.options(), Reporter()).num_done == 3
    assert len(threads) == 3
    assert all(name.startswith("write") for name in threads)
    monkeypatch.undo()
    assert cache_teacher(world.options(), Reporter()).num_done == 3
    assert pages(other) == pages(world)
    roots = [Manifest.load(one.shards).sealed(f"teachers/{folder_of(one).name}")["root"] for one in (world, other)]
    assert roots[0] == roots[1]


def test_the_next_unit_is_said_while_one_is_written(world: World, monkeypatch, beside) -> None:
    """Writing the first unit waits until the second one has been said: one after the other would never end."""
    said = threading.Semaphore(0)
    original_said, original_write = CacheWorker._said, CacheWorker._write
    order: list[tuple[str, int]] = []

    def say(self: CacheWorker, unit, advance):  # type: ignore[no-untyped-def]
        found = original_said(self, unit, advance)
        order.append(("said", unit.part))
        said.release()
        return found

    def write(self: CacheWorker, what, claim):  # type: ignore[no-untyped-def]
        if what.unit.part == 0:
            assert said.acquire(timeout=60)
            assert said.acquire(timeout=60), "the second unit waited for the first one's writing"
        notes = original_write(self, what, claim)
        order.append(("written", what.unit.part))
        return notes

    monkeypatch.setattr(CacheWorker, "_said", say)
    monkeypatch.setattr(CacheWorker, "_write", write)
    assert cache_teacher(world.options(), Reporter()).num_done == 3
    assert order.index(("said", 1)) < order.index(("written", 0)) < order.index(("written", 1))


def test_what_writing_refuses_is_raised_and_a_rerun_makes_the_rest(world: World, monkeypatch, beside) -> None:
    original = CacheWorker._write

    def write(self: CacheWorker, what, claim):  # type: ignore[no-untyped-def]
        if what.unit.part == 1:
            raise ShardError("the disk is full")
        return original(self, what, claim)

    monkeypatch.setattr(CacheWorker, "_write", write)
    with pytest.raises(ShardError, match="the disk is full"):
        cache_teacher(world.options(), Reporter())
    there = {path.name for path in folder_of(world).glob("part-*.parquet")}
    assert "part-00000.parquet" in there
    assert "part-00001.parquet" not in there
    assert not list(folder_of(world).glob("*.tmp"))
    monkeypatch.setattr(CacheWorker, "_write", original)
    assert cache_teacher(world.options(), Reporter()).num_missing == 0


@pytest.mark.parametrize("error", [ModelError("not finite"), KeyboardInterrupt()])
def test_a_unit_that_cannot_be_said_leaves_those_before_it_whole(world: World, monkeypatch, beside, error) -> None:
    original = CacheWorker._said

    def say(self: CacheWorker, unit, advance):  # type: ignore[no-untyped-def]
        if unit.part == 1:
            raise error
        return original(self, unit, advance)

    monkeypatch.setattr(CacheWorker, "_said", say)
    with pytest.raises(type(error)):
        cache_teacher(world.options(), Reporter())
    assert [path.name for path in sorted(folder_of(world).glob("part-*.parquet"))] == ["part-00000.parquet"]
    assert not list(folder_of(world).glob("*.tmp"))
    assert not [one for one in threading.enumerate() if one.name.startswith("write")]
    monkeypatch.setattr(CacheWorker, "_said", original)
    assert cache_teacher(world.options(), Reporter()).num_done == 2


def test_a_unit_that_another_process_has_claimed_is_left_to_it(world: World, tmp_path: Path, beside) -> None:
    from sra_data.shards.store import claimed

    cache_teacher(world.options(), Reporter())
    part = folder_of(world) / "part-00001.parquet"
    kept = part.read_bytes()
    for path in [part, *folder_of(world).glob("part-00001.*")]:
        path.unlink(missing_ok=True)
    with ShardSet.open(world.shards) as shards:
        run = CacheRun(world.options(), shards, Reporter())
        run.find()
        worker = CacheWorker(run.settings, run.teacher)
        try:
            units = run.units()
            with claimed(run.folder, units[1], wait=False) as claim:
                assert claim is not None
                assert [(unit.part, notes) for unit, notes in worker.run(units, lambda tokens: None)] == [
                    (0, None),
                    (1, None),
                    (2, None),
                ]
            (made,) = [notes for _, notes in worker.run(units, lambda tokens: None) if notes is not None]
        finally:
            worker.close()
    assert made["examples"] > 0
    assert part.read_bytes() == kept
