"""A finished model is pushed when no process waits for the first one any more."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from sra_train import run as run_module
from tests.training_runs import train


def test_a_push_comes_behind_the_last_wait_and_says_where(still, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def push(folder: object, *, name: str, private: bool) -> str:
        order.append(f"push {name} {private}")
        return f"https://hub/{name}"

    monkeypatch.setattr(run_module, "push", push)
    monkeypatch.setattr(run_module, "refuse_unpushable", lambda name: None)
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: order.append("wait"))
    summary = train(still, tmp_path / "out", training__max_steps=1, hub__push_to="ann/student")
    assert order[-1] == "push ann/student True"
    assert order.count("push ann/student True") == 1
    assert "wait" in order
    assert summary.hub == "https://hub/ann/student"
