"""Which kernels attention may take: while a teacher or a student works none that is planned for one shape alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sra_data.models.devices import kernels_for_any_shape
from sra_data.teacher.capture import Example, TeacherCapture
from sra_data.teacher.spec import CaptureOptions
from sra_train.config import load_config
from sra_train.measure import evaluation
from sra_train.run import run
from tests.model_zoo import tiny_model

is_planned = torch.backends.cuda.cudnn_sdp_enabled


@pytest.fixture(params=[True, False], autouse=True)
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    """What the process had chosen, which is its own affair."""
    known = is_planned()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(known)


def test_what_the_process_had_chosen_holds_again_afterwards(before: bool) -> None:
    with kernels_for_any_shape():
        assert not is_planned()
    assert is_planned() is before
    with pytest.raises(KeyError), kernels_for_any_shape():
        raise KeyError
    assert is_planned() is before


def test_a_teacher_runs_without_them(before: bool) -> None:
    model = tiny_model("llama")
    seen: list[bool] = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(is_planned()))
    capture = TeacherCapture(model, CaptureOptions(top_k=3))
    capture([Example("one", np.arange(3, 9, dtype=np.int32), np.arange(2, 6, dtype=np.int32))])
    capture.close()
    assert seen == [False]
    assert is_planned() is before


def test_training_and_evaluating_run_without_them(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def stop(*_: object) -> None:
        seen.append(is_planned())
        raise StopIteration

    monkeypatch.setattr("sra_train.run.make_accelerator", stop)
    monkeypatch.setattr("sra_train.run.resolve", lambda config: config)
    monkeypatch.setattr(evaluation, "check_options", stop)
    with pytest.raises(StopIteration):
        run(load_config(overrides={"data.shards": "shards"}))
    with pytest.raises(StopIteration):
        evaluation.evaluate(None)  # type: ignore[arg-type]
    assert seen == [False, False]
    assert is_planned() is before
