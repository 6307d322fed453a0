"""One small world for all tests of the stage; each gets a copy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.stages.cache.worlds import World, save_teacher, write_world


@pytest.fixture(scope="package")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Written once, never changed."""
    folder = tmp_path_factory.mktemp("cache")
    return write_world(folder, save_teacher(folder / "models" / "teacher"))


@pytest.fixture
def world(first_world: World, tmp_path: Path) -> World:
    """The same shards and models, the shards for this test alone."""
    return replace(first_world, shards=Path(shutil.copytree(first_world.shards, tmp_path / "shards")))
