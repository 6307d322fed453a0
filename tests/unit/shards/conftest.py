"""A sealed set of shards, made once and copied by the tests that damage it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.shards.builders import make_shards


@pytest.fixture(scope="session")
def sealed_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """A folder nobody changes, and its rows."""
    folder = tmp_path_factory.mktemp("sealed") / "shards"
    return folder, make_shards(folder)


@pytest.fixture
def shards(sealed_set: tuple[Path, dict[str, list[Any]]], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sealed_set[0], tmp_path / "shards"))
