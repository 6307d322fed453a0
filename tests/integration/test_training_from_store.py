"""Training from a store: the same losses as from the folder, with a cache smaller than the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sra_data.shards.store import folder_of
from sra_data.shards.stores import places
from tests.stores import Machines, in_memory
from tests.synthetic_shards import SyntheticShards, make_shards
from tests.training_runs import numbers, train

URL = "memory://bucket/shards"


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    with in_memory(tmp_path, monkeypatch) as found:
        yield found


def test_a_run_from_a_store_has_the_losses_of_a_run_from_the_folder(machines: Machines, tmp_path: Path) -> None:
    machines.use("maker")
    made = make_shards(tmp_path / "made")
    make_shards(tmp_path / "made", shards=folder_of(URL))
    parts = [file.size for key, file in MemoryFileSystem.store.items() if "/part-" in key and key.endswith(".parquet")]
    train(made, tmp_path / "here", **{"data.window": 1})
    expected = numbers(tmp_path / "here")
    for name, cache_bytes in (("small", sum(parts) // 3), ("large", 1 << 24)):
        machines.use(name, cache_bytes=cache_bytes)
        there = SyntheticShards(Path(URL), made.student, made.num_train, made.num_dev, made.teachers)
        train(there, tmp_path / f"run-{name}", **{"data.window": 1, "data.shards": URL})
        assert numbers(tmp_path / f"run-{name}") == expected
        kept = sum(path.stat().st_size for path in places.cache_folder().glob("[0-9a-f][0-9a-f]/*"))
        assert 0 < kept <= cache_bytes
        assert not list(places.workspaces().rglob("part-*.parquet"))
