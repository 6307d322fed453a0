"""Weights that are no numbers of a model: codes of a quantization that nothing names, and NaN."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hostile_models import OPENERS, WEIGHTS, model_folder, refusal


def changed(folder: Path, name: str, dtype: torch.dtype | None = None, value: float | None = None) -> Path:
    found = load_file(folder / WEIGHTS)
    found[name] = found[name].to(dtype) if dtype is not None else torch.full_like(found[name], value)
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_weights_in_whole_numbers_need_a_quantization(opener: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = changed(model_folder(tmp_path / "model"), "model.layers.1.mlp.up_proj.weight", dtype)
    said = refusal(OPENERS[opener], folder)
    assert "up_proj.weight in whole numbers" in said


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_so(opener: str, value: float, tmp_path: Path) -> None:
    folder = changed(model_folder(tmp_path / "model"), "model.layers.1.mlp.up_proj.weight", value=value)
    assert "NaN or infinite" in refusal(OPENERS[opener], folder)


@pytest.mark.parametrize("name", ["", "  ", "n" * 300])
@pytest.mark.parametrize("opener", OPENERS)
def test_a_name_that_no_folder_can_have_is_one_line(opener: str, name: str) -> None:
    from sra_data.corpus.tokenization import SideTokenizer
    from sra_data.errors import SRAError
    from sra_data.teacher.loading import load
    from sra_data.teacher.spec import TeacherSpec
    from sra_train.config import StudentConfig
    from sra_train.student import load_student

    by_name = {
        "teacher": lambda: load(TeacherSpec(name, device="cpu")),
        "student": lambda: load_student(name, StudentConfig()),
    }
    for opened in (by_name[opener], lambda: SideTokenizer.load(name)):
        with pytest.raises(SRAError) as caught:
            opened()
        assert "\n" not in str(caught.value)


def test_a_device_is_one_that_holds_numbers() -> None:
    from sra_data.errors import ConfigError
    from sra_data.models.devices import usable_device

    assert usable_device("cpu").type == "cpu"
    for name in ("meta", "tpu", "cuda:77", "cpu:cpu"):
        with pytest.raises(ConfigError, match=f"--device {name}: cannot be used"):
            usable_device(name)
