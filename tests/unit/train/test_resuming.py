"""Where a run goes on: at the newest checkpoint that is whole; a finished run may be given more, no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sra_data.errors import TrainingError
from sra_train.record.checkpoint import Checkpoints, Progress
from sra_train.record.resuming import Resume, where_to_resume

SHORT = {"total_steps": 4, "training.epochs": 2, "training.max_steps": None, "training.seed": 1}
LONG = {**SHORT, "total_steps": 8, "training.epochs": 4}


def store(folder: Path, identity: Mapping[str, Any] = SHORT) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep_last=9, identity=identity)


def write(kept: Checkpoints, *steps: int, **progress: Any) -> None:
    for step in steps:
        optimizer = {"state": {"w": {"m": torch.ones(2)}}, "param_groups": []}
        kept.write(model={"w": torch.full((2,), float(step))}, optimizer=optimizer, progress=Progress(step, **progress))


def damage(kept: Checkpoints, step: int, name: str = "model.safetensors") -> None:
    path = kept.path(step) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def found(kept: Checkpoints, known: Mapping[str, Any] | None = None) -> Resume:
    resume = where_to_resume(kept, kept.identity if known is None else known)
    assert resume is not None
    return resume


def test_the_newest_is_taken_and_nothing_is_said(tmp_path: Path) -> None:
    kept = store(tmp_path)
    assert where_to_resume(kept, None) is None
    write(kept, 1, 2, 3)
    resume = found(kept)
    assert (resume.step, resume.damaged, resume.extended_at, resume.lines(4)) == (3, {}, [], [])
    assert resume.progress(Progress(3)) == Progress(3)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_one_costs_the_steps_behind_the_one_before(tmp_path: Path, name: str) -> None:
    kept = store(tmp_path)
    write(kept, 1, 2, 3)
    damage(kept, 3, name)
    resume = found(kept)
    assert resume.step == 2
    assert list(resume.damaged) == [3]
    (line,) = resume.lines(4)
    assert f"step-00000003/{name}: damaged" in line
    assert line.endswith("; going on from step 2, the last that is whole")
    assert "delete" not in line  # there is nothing to do


def test_several_damaged_ones_are_said_one_by_one(tmp_path: Path) -> None:
    kept = store(tmp_path)
    write(kept, 1, 2, 3)
    damage(kept, 3)
    (kept.path(2) / "optimizer.safetensors").unlink()
    resume = found(kept)
    assert resume.step == 1
    assert len(resume.lines(4)) == 2


def test_with_none_left_one_line_says_so(tmp_path: Path) -> None:
    kept = store(tmp_path)
    write(kept, 1, 2)
    damage(kept, 1)
    (kept.path(2) / "state.json").unlink()
    with pytest.raises(
        TrainingError, match=r"state\.json: missing, nor is any of the 1 before it; no checkpoint"
    ) as raised:
        where_to_resume(kept, kept.identity)
    assert "\n" not in str(raised.value)
    assert f"delete {kept.folder} to begin again" in str(raised.value)


def test_another_runs_checkpoint_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    write(store(tmp_path), 1)
    write(store(tmp_path, {**SHORT, "training.seed": 2}), 2)
    with pytest.raises(TrainingError, match=r"step-00000002: a checkpoint of another run: training\.seed: 2 then"):
        found(store(tmp_path))


def test_a_finished_run_is_given_more(tmp_path: Path) -> None:
    write(store(tmp_path), 2, 4, evaluations_without_better=3)
    kept = store(tmp_path, LONG)
    for known in (SHORT, LONG):  # before run.json says so and, after a kill, behind that
        resume = found(kept, known)
        assert (resume.step, resume.length_before, resume.extended_at) == (4, 4, [4])
        (line,) = resume.lines(8)
        assert "a finished run of 4 steps is given 8: from step 5 on" in line
        assert resume.progress(Progress(4, evaluations_without_better=3)) == Progress(4, extended_at=[4])
    write(kept, 6, extended_at=[4])
    again = found(kept, LONG)
    assert (again.step, again.length_before, again.extended_at, again.lines(8)) == (6, None, [4], [])


def test_a_run_that_stopped_early_is_finished_and_its_patience_is_new(tmp_path: Path) -> None:
    write(store(tmp_path), 3, stopped_early=True, evaluations_without_better=2)
    resume = found(store(tmp_path, LONG), SHORT)
    kept = Progress(3, stopped_early=True, evaluations_without_better=2)
    assert resume.progress(kept) == Progress(3, extended_at=[3])


def test_a_run_in_its_middle_is_given_nothing(tmp_path: Path) -> None:
    write(store(tmp_path), 2)
    said = r"holds another run: total_steps: 4 then, 8 now; .*a run is given more epochs or steps when it has done"
    with pytest.raises(TrainingError, match="of a run of 4 steps, which is not finished"):
        found(store(tmp_path, LONG), SHORT)
    with pytest.raises(TrainingError, match=said):
        where_to_resume(store(tmp_path / "new", LONG), SHORT)  # begun, but no checkpoint yet
    write(store(tmp_path), 4)
    damage(store(tmp_path), 4)  # what shows that it was finished
    with pytest.raises(TrainingError, match="not finished"):
        found(store(tmp_path, LONG), SHORT)
    assert found(store(tmp_path), SHORT).step == 2


def test_an_extension_that_was_killed_at_once_is_not_extended_again_before_it_is_done(tmp_path: Path) -> None:
    write(store(tmp_path), 4)
    longest = {**LONG, "total_steps": 12, "training.epochs": 6}
    with pytest.raises(TrainingError, match="total_steps: 8 then, 12 now"):
        found(store(tmp_path, longest), LONG)
    assert found(store(tmp_path, LONG), LONG).step == 4
