"""Whole runs of the methods with projectors of their own or maps of their own: they train, save, and continue."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sra_train.record.tracking import read_metrics
from tests.synthetic_shards import TEACHERS, SyntheticShards, make_shards
from tests.training_runs import train, weights

PROJECTORS = {
    "dskd": {"attention.query": (32, 24), "attention.to_student": (12, 16), "attention.to_teacher": (16, 12)},
    "dskdv2": {"to_student": (12, 16), "to_teacher": (16, 12)},
    "mined": {},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    return make_shards(tmp_path_factory.mktemp("dual"), num_examples=20, num_dev=2, num_teachers=2)


@pytest.mark.parametrize("method", PROJECTORS)
def test_a_run_trains_and_continues_where_it_was_with_its_projectors(made, tmp_path: Path, method: str) -> None:
    said = {"method__name": method, "data__teachers": [TEACHERS[0]], "training__epochs": 3}
    whole = train(made, tmp_path / "whole", **said)
    assert whole.steps == whole.total_steps
    records, halved = read_metrics(tmp_path / "whole" / "metrics.jsonl"), tmp_path / "halved"
    steps = [record for record in records if record["kind"] == "step"]
    assert all(math.isfinite(record["loss"]) for record in steps)
    # of the labels alone: which rows of the student's space count may change from step to step
    assert sum(record["ce"] for record in steps[-3:]) < sum(record["ce"] for record in steps[:3])
    saved = weights(tmp_path / "whole")
    own = {
        name.partition("method.teachers.0.")[2]: tuple(one.shape) for name, one in saved.items() if "method." in name
    }
    assert own == PROJECTORS[method]
    train(made, halved, **said, checkpoints__every_steps=1, checkpoints__keep_last=50)
    for later in sorted((halved / "checkpoints").iterdir())[4:]:
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    train(made, halved, **said, checkpoints__every_steps=1, checkpoints__keep_last=50)
    again = weights(halved)
    for name, one in saved.items():
        torch.testing.assert_close(
            again[name], one, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("method", PROJECTORS)
def test_a_run_learns_from_two_teachers(made, tmp_path: Path, method: str) -> None:
    teachers = [f"{name}:{weight}" for name, weight in zip(TEACHERS, (0.3, 0.7), strict=False)]
    done = train(made, tmp_path / "run", method__name=method, data__teachers=teachers, training__max_steps=2)
    assert done.steps == 2
    projectors = [name for name in weights(tmp_path / "run") if "method." in name]
    assert len(projectors) == 2 * len(PROJECTORS[method])
