"""`training.deterministic`: on inside, as before outside, and one line where an operation cannot repeat itself."""

from __future__ import annotations

import os

import pytest
import torch

from sra_data.errors import TrainingError
from sra_train.determinism import WORKSPACE, deterministic, settings


@pytest.mark.parametrize("before", [None, ":16:8", ":0:0"])
def test_everything_is_on_inside_and_as_before_outside(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    if before is not None:
        monkeypatch.setenv(WORKSPACE, before)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    outside = settings()
    with deterministic(True):
        assert settings() == {
            "algorithms": True,
            "cudnn.deterministic": True,
            "cudnn.benchmark": False,
            WORKSPACE: ":16:8" if before == ":16:8" else ":4096:8",  # the user's, where it is one that helps
        }
    assert settings() == outside
    assert os.environ.get(WORKSPACE) == before


def test_nothing_is_touched_where_it_is_not_asked_for() -> None:
    outside = settings()
    with deterministic(False):
        assert settings() == outside


def test_what_cannot_repeat_itself_is_one_line_and_other_errors_stay_bugs() -> None:
    with pytest.raises(TrainingError, match=r"training\.deterministic: put_ does not have a deterministic") as raised:
        put()
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("leave it out, or choose another student or method")
    assert not settings()["algorithms"]
    with pytest.raises(RuntimeError, match="shape"), deterministic(True):
        torch.ones(3).reshape(2)


def put() -> None:
    with deterministic(True):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
