"""What the tests of training share: small whole shards, made without a teacher, once for each file of tests."""

from __future__ import annotations

import pytest

from tests.synthetic_shards import SyntheticShards, make_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    """Shards whose student has dropout."""
    return make_shards(tmp_path_factory.mktemp("made"), dropout=0.1)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    """Shards whose student has no dropout."""
    return make_shards(tmp_path_factory.mktemp("still"))
