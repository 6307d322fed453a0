"""`--deterministic`: on in every step, recorded, and on a CPU equal to the last bit (as without it)."""

from __future__ import annotations

import json

import torch

from sra_train.determinism import settings
from tests.training_runs import Listening, numbers, train, weights

ON = {"algorithms": True, "cudnn.deterministic": True, "cudnn.benchmark": False, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def test_it_is_on_in_every_step_recorded_and_off_again_behind_the_run(made, tmp_path) -> None:
    before, found = settings(), []
    train(made, tmp_path / "on", Listening(lambda step: found.append(settings())), training__deterministic=True)
    assert len(found) >= 10
    assert all(one == ON for one in found)
    assert settings() == before
    train(made, tmp_path / "off")
    recorded = [json.loads((tmp_path / name / "run.json").read_text())["determinism"] for name in ("on", "off")]
    assert recorded == [ON, before]
    assert not before["algorithms"]


def test_two_runs_are_equal_bit_by_bit_and_a_resume_may_switch_it(made, tmp_path) -> None:
    for name in ("one", "two"):
        train(made, tmp_path / name, training__deterministic=True)
    train(made, tmp_path / "three", training__epochs=1, training__deterministic=True)
    train(made, tmp_path / "three", training__epochs=1)
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
