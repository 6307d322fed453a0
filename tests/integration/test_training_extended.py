"""A finished run that is given more epochs or steps: what has been done stays, the rest is as a longer run has it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sra_data.errors import TrainingError
from tests.training_runs import Crashing, Interrupting, Listening, losses, numbers, train, weights

# so small that float32 weights do not move: the first evaluation is the best
STILL = {
    "training__learning_rate": 1e-30,
    "training__projector_learning_rate": 1e-30,
    "training__min_learning_rate": 0,
}


def rates(out: Path) -> list[object]:
    return [record["lr"] for record in numbers(out) if record["kind"] == "step"]


def test_a_finished_run_goes_on_with_the_rates_of_a_longer_one(made, tmp_path) -> None:
    out, straight = tmp_path / "out", tmp_path / "straight"
    train(made, straight, training__epochs=2)
    assert train(made, out, training__epochs=1).steps == 5
    before = numbers(out)
    listening = Listening()
    summary = train(made, out, listening, training__epochs=2)
    assert (summary.steps, summary.total_steps) == (10, 10)
    (line,) = listening.said("a finished run of 5 steps is given 10")
    assert "from step 6 on its learning rates are those of a run of 10" in line
    assert numbers(out)[: len(before)] == before
    assert rates(out)[5:] == rates(straight)[5:]
    assert rates(out)[:5] != rates(straight)[:5]
    assert losses(out)[5:] != losses(straight)[5:]  # it has come another way
    assert json.loads((out / "run.json").read_text())["extended_at"] == [5]
    assert (
        "| Given more steps | behind step 5, where it had been finished |" in (out / "model" / "README.md").read_text()
    )
    again = train(made, out, training__epochs=2)
    assert again == summary
    assert json.loads((out / "run.json").read_text())["extended_at"] == [5]


def test_more_steps_are_as_good_as_more_epochs(still, tmp_path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    for folder in (out, other):
        train(still, folder, training__max_steps=3)
    train(still, out, training__max_steps=7)
    train(still, other, training__max_steps=7, training__epochs=3)
    assert len(losses(out)) == 7
    assert numbers(out) == numbers(other)


def test_an_extension_that_is_killed_and_resumed_changes_nothing(made, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, out):
        train(made, folder, training__epochs=1)
    train(made, whole, training__epochs=3)
    with pytest.raises(RuntimeError, match="crashed behind step 6"):  # before the first checkpoint behind the old end
        train(made, out, Crashing(6), training__epochs=3)
    for step in (7, 11):
        with pytest.raises(KeyboardInterrupt):
            train(made, out, Interrupting(step), training__epochs=3)
    train(made, out, training__epochs=3)
    assert numbers(out) == numbers(whole)
    one, other = weights(out), weights(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_may_be_extended_again(still, tmp_path) -> None:
    for epochs in (1, 2, 3):
        assert train(still, tmp_path, training__epochs=epochs).steps == 5 * epochs
    assert json.loads((tmp_path / "run.json").read_text())["extended_at"] == [5, 10]


def test_an_unfinished_run_is_not_and_none_is_shortened(still, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(still, tmp_path, Interrupting(2), training__epochs=1)
    with pytest.raises(TrainingError, match="of a run of 5 steps, which is not finished"):
        train(still, tmp_path, training__epochs=2)
    train(still, tmp_path, training__epochs=1)
    with pytest.raises(TrainingError, match=r"holds another run: .*training\.max_steps: None then, 3 now"):
        train(still, tmp_path, training__epochs=1, training__max_steps=3)
    with pytest.raises(TrainingError, match=r"holds another run: .*training\.batch_size: 5 then, 4 now"):
        train(still, tmp_path, training__epochs=2, training__batch_size=4)


def test_a_run_that_stopped_early_goes_on_with_new_patience(still, tmp_path) -> None:
    short = train(still, tmp_path, training__epochs=4, evaluation__patience=2, **STILL)
    assert (short.steps, short.stopped_early) == (15, True)
    long = train(still, tmp_path, training__epochs=8, evaluation__patience=2, **STILL)
    assert (long.steps, long.stopped_early) == (25, True)


def test_the_best_step_may_be_one_from_before_and_its_model_replaces_the_old_one(still, tmp_path) -> None:
    train(still, tmp_path, training__epochs=2, checkpoints__keep_last=1, **STILL)
    before = (tmp_path / "model").stat().st_ino
    summary = train(still, tmp_path, training__epochs=3, checkpoints__keep_last=1, **STILL)
    assert summary.exported_step == 5
    assert (tmp_path / "model").stat().st_ino != before
    assert "| Weights of | step 5 of 15 |" in (tmp_path / "model" / "README.md").read_text()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
