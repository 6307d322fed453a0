"""Laws of checkpoints: a model whose tensors are not all the checkpoint's is refused, as teacher and as student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sra_data.errors import ModelError
from sra_data.teacher.loading import load
from sra_data.teacher.spec import TeacherSpec
from sra_train.config import StudentConfig
from sra_train.student import load_student
from tests.model_zoo import tiny_model

Open = Callable[[Path], object]
OPENERS: dict[str, Open] = {
    "teacher": lambda folder: load(TeacherSpec(str(folder), device="cpu")),
    "student": lambda folder: load_student(str(folder), StudentConfig()),
}


@pytest.fixture(params=OPENERS)
def opened(request: pytest.FixtureRequest) -> Open:
    """How a teacher and how a student is opened."""
    return OPENERS[request.param]


def folder_with(
    place: Path, family: str = "llama", *, without: str = "", added: tuple[str, ...] = (), **config: Any
) -> Path:
    """A tiny model's folder, `without` a tensor, with others `added`, its configuration changed."""
    tiny_model(family).save_pretrained(place)
    tensors: dict[str, Tensor] = load_file(place / "model.safetensors")
    tensors.pop(without, None)
    tensors |= {name: torch.ones(4) for name in added}
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(settings | config))
    return place


def refusal(opened: Open, folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        opened(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_tensor_that_is_missing_is_not_replaced_by_random_numbers(opened: Open, tmp_path: Path, name: str) -> None:
    message = refusal(opened, folder_with(tmp_path, without=name))
    assert f"lacks 1 tensors of LlamaForCausalLM ({name}), which would be random numbers; use a whole" in message


def test_tensors_of_other_shapes_are_refused_by_name(opened: Open, tmp_path: Path) -> None:
    message = refusal(opened, folder_with(tmp_path, intermediate_size=40))
    assert "has 9 tensors in other shapes than LlamaForCausalLM (model.layers.0.mlp.down_proj.weight, " in message


@pytest.mark.parametrize("name", ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias", "layers.0.mlp.w.weight"])
def test_a_tensor_of_body_or_head_without_a_place_is_refused(opened: Open, tmp_path: Path, name: str) -> None:
    message = refusal(opened, folder_with(tmp_path, added=(name,)))
    assert f"has 1 tensors of a body or head that LlamaForCausalLM has no place for ({name}); use the con" in message


def test_layers_that_the_configuration_leaves_out_are_refused(opened: Open, tmp_path: Path) -> None:
    assert "has 9 tensors of a body or head" in refusal(opened, folder_with(tmp_path, num_hidden_layers=2))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.weight", "vision_tower.a.weight")),
        ("gpt2", ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias", "h.1.attn.bias")),
        ("gpt_neox", ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias")),
    ],
)
def test_saved_buffers_and_parts_beside_body_and_head_are_let_through(
    opened: Open, tmp_path: Path, family: str, names: tuple[str, ...]
) -> None:
    opened(folder_with(tmp_path, family, added=names))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_ordinary_families_are_opened_with_tied_heads_and_with_their_own(
    opened: Open, tmp_path: Path, family: str, is_tied: bool
) -> None:
    tiny_model(family, tie_word_embeddings=is_tied).save_pretrained(tmp_path)
    opened(tmp_path)


def test_a_cut_file_of_weights_is_one_line(opened: Open, tmp_path: Path) -> None:
    file = folder_with(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be loaded (" in refusal(opened, tmp_path)


def test_a_student_with_new_weights_needs_no_checkpoint(tmp_path: Path) -> None:
    (folder_with(tmp_path) / "model.safetensors").unlink()
    load_student(str(tmp_path), StudentConfig(init="random"))
