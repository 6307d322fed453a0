"""What a model is given to write on, and what is read of what it writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sra_train.config import GenerationConfig
from sra_train.measure.generation import Prompt, sample_answers
from tests.model_zoo import tiny_model

END = 2


class Numbers:
    """A tokenizer whose text is its ids."""

    eos_token_id, pad_token_id = END, 0

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(str(number), list(range(10, 10 + length)), "") for number, length in enumerate(lengths)]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[torch.Tensor]]:
    """A model, and what it is asked to go on from: ids with padding as -1."""
    model, seen = tiny_model("llama"), []
    generate = model.generate

    def remember(**asked: Any) -> torch.Tensor:
        seen.append(torch.where(asked["attention_mask"].bool(), asked["input_ids"], -1))
        return generate(**asked)

    monkeypatch.setattr(model, "generate", remember)
    return model, seen


def test_a_long_prompt_keeps_its_end_where_the_question_stands(given) -> None:
    model, seen = given
    options = GenerationConfig(max_prompt_tokens=4, max_new_tokens=2)
    sample_answers(model, Numbers(), prompts(9, 3), options, seed=1)
    assert seen[0].tolist() == [[15, 16, 17, 18], [-1, 10, 11, 12]]  # padded on the left


def test_an_answer_is_what_stands_behind_the_prompt_up_to_its_end(given, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = given
    written = torch.tensor([[7, 8, END, 9], [4, 5, 6, 3]])
    monkeypatch.setattr(model, "generate", lambda **asked: torch.cat([asked["input_ids"], written], dim=1))
    answers = sample_answers(model, Numbers(), prompts(2, 3), GenerationConfig(max_new_tokens=4), seed=1)
    assert answers == ["4 5 6 3", "7 8"]  # the longest prompt goes first, answers keep their prompts' order
    assert seen == []


def test_nothing_is_written_beyond_the_models_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", max_position_embeddings=6)
    options = GenerationConfig(max_prompt_tokens=9, max_new_tokens=5)
    answers = sample_answers(model, Numbers(), prompts(6, 4), options, seed=1)
    assert answers == ["", ""]  # the batch's width leaves no room
    (alone,) = sample_answers(model, Numbers(), prompts(4), options, seed=3)
    assert 0 < len(alone.split()) <= 2
