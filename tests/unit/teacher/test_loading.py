"""Laws of loading: one line for what cannot be loaded; the fingerprint changes with what decides the numbers."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from sra_data.errors import ConfigError, ModelError
from sra_data.teacher.loading import LoadedTeacher, check_vocabulary, identify, load, settled
from sra_data.teacher.spec import TeacherSpec
from tests.model_zoo import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def opened(folder: Path, **options: Any) -> LoadedTeacher:
    return load(TeacherSpec(str(folder), **options))


def test_a_folder_loads_in_float32_on_cpus_without_gradients(folder: Path) -> None:
    teacher = opened(folder, device="cpu")
    assert teacher.dtype == torch.float32
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.vocabulary_size == 97
    assert teacher.revision is None
    assert opened(folder, device="cpu", dtype="bf16").dtype == torch.bfloat16


def test_the_fingerprint_is_the_content_of_the_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    first = opened(folder).fingerprint
    tiny_model("llama").save_pretrained(tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere").fingerprint == first
    assert opened(folder, dtype="bf16").fingerprint == first
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    assert opened(tmp_path / "other").fingerprint != first


def test_a_soft_capping_teacher_is_taken_off_the_eager_path(tmp_path: Path) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path)
    assert opened(tmp_path).config._attn_implementation == "softcapped_sdpa"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads names that transformers renamed
def test_an_adapter_changes_the_teacher_and_its_fingerprint(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    plain, teacher = opened(folder), opened(folder, adapter=str(tmp_path / "adapter"))
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(teacher.model(ids).logits, adapted.eval()(ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(teacher.model(ids).logits, plain.model(ids).logits)
    assert teacher.fingerprint != plain.fingerprint
    with pytest.raises(ModelError, match=r"--adapter .*: cannot be put on the teacher"):
        opened(folder, adapter=str(folder))


def test_an_unknown_model_is_one_line_with_the_remedy() -> None:
    with pytest.raises(
        ModelError, match=r"teacher no/such-model: cannot be loaded \(.*\); give a local folder"
    ) as found:
        load(TeacherSpec("no/such-model"))
    assert "\n" not in str(found.value)


def test_a_folder_with_pickled_weights_only_is_refused_unless_asked(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        opened(folder)
    assert opened(folder, allow_pickle=True).vocabulary_size == 97


def test_a_vocabulary_smaller_than_the_tokenizers_ids_is_refused(folder: Path) -> None:
    teacher = opened(folder)
    check_vocabulary(teacher, 96, tokenizer="t")
    with pytest.raises(ModelError, match=r"vocabulary has 97 ids, its tokenizer t gives id 97; .*align again"):
        check_vocabulary(teacher, 97, tokenizer="t")


def test_options_that_cannot_be_carried_out_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype fp8: unknown; choose one of bf16, fp16, fp32"):
        opened(folder, dtype="fp8")
    with pytest.raises(ConfigError, match="--quantization 3bit: unknown; choose one of 4bit, 8bit"):
        opened(folder, quantization="3bit")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantization_without_its_library_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="--quantization 4bit: needs bitsandbytes"):
        opened(folder, quantization="4bit")


def test_what_is_left_open_is_settled_once(tmp_path: Path) -> None:
    spec = settled(TeacherSpec("org/model@v1", device="cpu"))
    assert spec == TeacherSpec("org/model", "v1", dtype="fp32", device="cpu")
    assert settled(spec) == spec
    (tmp_path / "a@b").mkdir()
    assert settled(TeacherSpec(str(tmp_path / "a@b"))).name == str(
        tmp_path / "a@b"
    )  # an existing folder is never split


def test_a_teacher_of_the_hub_is_its_commit_and_another_one_another_teacher(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that has moved on the old pages would be taken for its own: only the commit tells, the name does not."""
    cache = tmp_path / "models--org--teacher"
    for commit in ("1" * 40, "2" * 40):
        shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = []
    for commit in ("1" * 40, "2" * 40):
        (cache / "refs" / "main").write_text(commit)
        found.append(identify(TeacherSpec("org/teacher")))
    assert [one.revision for one in found] == ["1" * 40, "2" * 40]
    assert found[0].fingerprint != found[1].fingerprint
    assert identify(TeacherSpec("org/teacher", revision="1" * 40)).fingerprint == found[0].fingerprint
    assert load(TeacherSpec("org/teacher", device="cpu")).fingerprint == found[1].fingerprint


def test_a_teacher_is_identified_without_its_weights_in_memory(folder: Path) -> None:
    identity = identify(TeacherSpec(str(folder)))
    assert identity.fingerprint == opened(folder).fingerprint
    assert (identity.name, identity.revision, identity.num_layers, identity.is_tied) == (str(folder), None, 3, False)
