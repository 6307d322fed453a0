"""The cache stage's small world with a teacher whose norms have learnt something: put on twice, one shows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_byte_level
from tests.unit.stages.cache.worlds import World, write_world


@pytest.fixture(scope="package")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Written once, never changed."""
    folder = tmp_path_factory.mktemp("imports")
    teacher, model = folder / "models" / "teacher", tiny_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += torch.linspace(-0.6, 0.8, len(parameter))
    model.save_pretrained(teacher)
    train_byte_level().save_pretrained(teacher)
    return write_world(folder, teacher)


@pytest.fixture
def world(first_world: World, tmp_path: Path) -> World:
    """The same shards and models, the shards for this test alone."""
    return replace(first_world, shards=Path(shutil.copytree(first_world.shards, tmp_path / "shards")))
