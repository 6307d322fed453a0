"""A soft-capping student trains without the tokens x tokens map, and says what the eager model says."""

from __future__ import annotations

from pathlib import Path

import torch

from sra_train.config import StudentConfig
from sra_train.student import load_student
from tests.model_zoo import tiny_model


def test_a_soft_capping_student_is_taken_off_the_eager_path(tmp_path: Path) -> None:
    eager = tiny_model("gemma2")
    eager.save_pretrained(tmp_path)
    student = load_student(str(tmp_path), StudentConfig()).eval()
    assert student.config._attn_implementation == "softcapped_sdpa"
    ids = torch.arange(1, 13)[None]
    torch.testing.assert_close(student(ids).logits, eager(ids).logits, atol=1e-5, rtol=1e-5)


def test_an_attention_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path)
    student = load_student(str(tmp_path), StudentConfig(attention="eager"))
    assert student.config._attn_implementation == "eager"
