"""Shards to push, and a Hub on this machine to push them to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import sra_data
from tests.fake_hub import TOKEN, FakeHub, serving
from tests.integration.command_lines import write_examples, write_pair


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished folder with one teacher; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    teacher, student = write_pair(folder)
    data = write_examples(folder / "my.jsonl", 4)
    aligned = sra_data.align(teacher, student, data=data, out=folder / "shards")
    sra_data.cache_teacher(aligned.shards, top_k=4)
    return folder / "shards"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """The same, to be written to."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that the library asks in place of the real one, as somebody whom it knows."""
    hub = FakeHub()
    with serving(hub) as address:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
