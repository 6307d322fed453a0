"""The fingerprint of a student's starting weights: everything a checkpoint does not hold, or a method may read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from sra_train.config import LoraConfig, StudentConfig
from sra_train.record.fingerprint import starting_weights
from sra_train.student import load_student
from tests.model_zoo import tiny_model

LORA = StudentConfig(lora=LoraConfig(r=2))
NEW = StudentConfig(init="random")
HALF_FROZEN = StudentConfig(init="random", freeze=("transformer.wte",))


def written(folder: Path, seed: int) -> str:
    """A tiny student's folder."""
    tiny_model("gpt2", seed=seed).save_pretrained(folder)
    return str(folder)


def fingerprint(name: str, options: StudentConfig, *, seed: int = 0) -> str:
    return starting_weights(load_student(name, options, seed=seed), options)


@pytest.mark.parametrize("options", [StudentConfig(), LORA])
def test_it_is_that_of_the_weights_read_wherever_they_lie_and_whatever_the_seed(
    tmp_path: Path, options: StudentConfig
) -> None:
    one, moved, other = written(tmp_path / "one", 1), written(tmp_path / "moved", 1), written(tmp_path / "other", 2)
    assert fingerprint(one, options) == fingerprint(moved, options, seed=5)
    assert fingerprint(one, options) != fingerprint(other, options)


@pytest.mark.parametrize("options", [StudentConfig(), LORA])
def test_one_bit_of_any_tensor_changes_it(tmp_path: Path, options: StudentConfig) -> None:
    model = load_student(written(tmp_path, 1), options)
    before = starting_weights(model, options)
    for name, tensor in model.state_dict().items():
        if "lora_" in name:
            continue
        place = tensor.view(-1)[-1:].view(torch.int32)
        place ^= 1
        assert starting_weights(model, options) != before, name
        place ^= 1
    assert starting_weights(model, options) == before


def test_new_weights_count_where_they_stay_as_the_seed_made_them(tmp_path: Path) -> None:
    name = written(tmp_path, 1)
    assert fingerprint(name, NEW) == fingerprint(name, NEW, seed=5)  # all trained: a checkpoint holds them
    assert fingerprint(name, HALF_FROZEN) == fingerprint(name, HALF_FROZEN)
    assert fingerprint(name, HALF_FROZEN) != fingerprint(name, HALF_FROZEN, seed=5)


def hashed(**tensors: Tensor) -> str:
    """Of a module with these as buffers, as quantised layers keep packed weights and scales."""
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return starting_weights(module, StudentConfig())


def test_packed_weights_and_their_scales_are_part_of_it() -> None:
    packed, scales = torch.arange(6, dtype=torch.uint8), torch.ones(3, dtype=torch.bfloat16)
    before = hashed(packed=packed, scales=scales)
    assert before == hashed(packed=packed.clone(), scales=scales.clone())
    others = [
        {"packed": packed.flip(0), "scales": scales},
        {"packed": packed, "scales": scales * 2},
        {"packed": packed.view(2, 3), "scales": scales},
        {"packed": packed.view(torch.int8), "scales": scales},
        {"packed": packed, "scale": scales},
    ]
    assert len({before, *(hashed(**other) for other in others)}) == 1 + len(others)


def test_of_a_tensor_that_is_made_of_others_all_are_part_of_it() -> None:
    one, two = torch.arange(4.0), torch.ones(4)
    before = hashed(weight=TwoTensor(one, two))
    assert before == hashed(weight=TwoTensor(one.clone(), two.clone()))
    assert (
        len({before, hashed(weight=TwoTensor(one, one)), hashed(weight=TwoTensor(two, two)), hashed(weight=one)}) == 4
    )
