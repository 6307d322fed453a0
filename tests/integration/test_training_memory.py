"""A run whose memory runs out says where, and what to set, and goes on from its checkpoint."""

from __future__ import annotations

import pytest
import torch

from sra_data.errors import TrainingError
from sra_train import loop
from tests.training_runs import losses, train


def test_a_run_names_its_step_and_its_micro_batch_and_goes_on_from_its_checkpoint(still, tmp_path, monkeypatch) -> None:
    settings = {"checkpoints__every_steps": 1, "training__epochs": 1}
    train(still, tmp_path / "whole", **settings)
    original = loop.Trainer.clip
    calls: list[int] = []

    def clip(self: loop.Trainer) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self)

    monkeypatch.setattr(loop.Trainer, "clip", clip)
    said = (
        r"step 3 of 5, \d examples of up to \d+ tokens: out of memory on cpu; set training\.micro_batch_tokens=\d+ "
        r"\(it changes no result\), evaluation\.batch_size=4, training\.gradient_checkpointing=true or "
        r"student\.lora=true; the last checkpoint is untouched"
    )
    with pytest.raises(TrainingError, match=f"^{said}$"):
        train(still, tmp_path / "out", **settings)
    train(still, tmp_path / "out", **settings)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
