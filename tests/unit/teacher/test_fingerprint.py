"""Laws of the fingerprint: it changes with what decides a teacher's numbers, and with nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sra_data.errors import ModelError
from sra_data.teacher import fingerprint as room
from sra_data.teacher.loading import identify, load
from sra_data.teacher.spec import TeacherSpec
from tests.model_zoo import tiny_model

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads names that transformers renamed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    options = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(tiny_model("llama"), options)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def of(folder: Path, adapter: Path | str | None = None, **options: Any) -> str:
    return identify(TeacherSpec(str(folder), adapter=None if adapter is None else str(adapter), **options)).fingerprint


def changed(folder: Path, place: Path, **settings: Any) -> Path:
    """A copy with other settings in its configurations."""
    shutil.copytree(folder, place)
    (path,) = (path for path in place.glob("*config.json") if path.name != "generation_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return place


def logits(folder: Path, adapter: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(TeacherSpec(str(folder), adapter=str(adapter), device="cpu")).model(torch.arange(3, 9)[None]).logits


# ----------------------------------------------------------------------------------------------------------- adapters


def test_adapters_that_say_something_else_have_other_fingerprints(folder: Path, adapter: Path, tmp_path: Path) -> None:
    louder = changed(adapter, tmp_path / "louder", lora_alpha=64)
    assert not torch.allclose(logits(folder, adapter), logits(folder, louder))
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other / "adapter_model.safetensors")
    assert len({of(folder), of(folder, adapter), of(folder, louder), of(folder, other)}) == 4


def test_where_an_adapter_lies_and_was_made_changes_nothing(folder: Path, adapter: Path, tmp_path: Path) -> None:
    expected = of(folder, adapter)
    moved = changed(adapter, tmp_path / "moved", base_model_name_or_path="elsewhere", peft_version="0", revision="x")
    assert of(folder, moved) == expected
    names = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert of(folder, changed(adapter, tmp_path / "order", target_modules=names[::-1])) == expected
    assert load(TeacherSpec(str(folder), adapter=str(adapter), device="cpu")).fingerprint == expected


def test_an_adapter_of_the_hub_is_named_by_its_content_and_its_commit(
    folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = tmp_path / "models--org--tuned" / "snapshots"
    first = Path(shutil.copytree(adapter, commits / "1111"))
    second = changed(adapter, commits / "2222", lora_alpha=64)

    def cached(name: str, file: str, revision: str | None = None, **_: Any) -> str | None:
        found = {None: first, "v2": second, "2222": second, "1111": first}[revision] / file
        return str(found) if name == "org/tuned" and found.exists() else None

    monkeypatch.setattr(transformers.utils, "cached_file", cached)
    asked = TeacherSpec(str(folder), adapter="org/tuned", device="cpu")
    assert identify(asked).adapter == "org/tuned@1111"
    assert identify(TeacherSpec(str(folder), adapter="org/tuned@v2")).adapter == "org/tuned@2222"
    assert of(folder, "org/tuned") == of(folder, adapter) == load(asked).fingerprint
    assert of(folder, "org/tuned@v2") == of(folder, second) != of(folder, "org/tuned")


def test_an_adapter_that_is_nowhere_is_one_line(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"--adapter no/such: cannot be had \(.*\); give the folder or Hub id"
    ) as found:
        of(folder, "no/such")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("what", ["missing adapter keys", "of its tensors have no place"])
def test_an_adapter_that_is_not_this_models_is_refused(folder: Path, adapter: Path, tmp_path: Path, what: str) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(tensors))
    moved = {name.replace("layers.0", "layers.9"): tensors[name].clone()} if "place" in what else {}
    if not moved:
        del tensors[name]
    save_file(tensors | moved, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=rf"--adapter .*: cannot be put on the teacher \(.*{what}") as found:
        load(TeacherSpec(str(folder), adapter=str(adapter), device="cpu"))
    assert "\n" not in str(found.value)


def test_an_adapters_configuration_that_is_no_json_is_one_line(folder: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"--adapter .*: its adapter_config.json is no JSON"):
        of(folder, adapter)


# -------------------------------------------------------------------------------------------------------- remote code


def test_code_that_comes_with_a_teacher_counts_where_it_is_run(folder: Path) -> None:
    plain = of(folder)
    (folder / "modeling_own.py").write_text("SCALE = 1\n")
    (folder / "parts").mkdir()
    (folder / "parts" / "mlp.py").write_text("SCALE = 1\n")
    assert of(folder) == plain
    trusted = of(folder, trust_remote_code=True)
    for name in ("modeling_own.py", "parts/mlp.py"):
        (folder / name).write_text("SCALE = 2\n")
        assert of(folder) == plain
        assert of(folder, trust_remote_code=True) != trusted
        trusted = of(folder, trust_remote_code=True)


def test_trust_without_any_code_changes_nothing(folder: Path) -> None:
    assert of(folder, trust_remote_code=True) == of(folder)


def test_code_of_another_repository_counts_by_its_content(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_model("llama").config
    config.auto_map = {"AutoModelForCausalLM": "org/code--modeling_own.Own"}
    file = tmp_path / "modeling_own.py"
    monkeypatch.setattr(transformers.utils, "cached_file", lambda *_, **__: str(file))
    found = []
    for text in ("SCALE = 1", "SCALE = 2", "SCALE = 1"):
        file.write_text(text)
        found.append(room.fingerprint(str(folder), config, None, None, runs_code=True))
    assert found[0] == found[2] != found[1]


def test_where_own_code_was_found_changes_nothing(folder: Path, tmp_path: Path) -> None:
    config, other = tiny_model("llama").config, Path(shutil.copytree(folder, tmp_path / "other"))
    found = set()
    for place in (folder, other):
        config.auto_map = {"AutoModelForCausalLM": f"{place}--modeling_own.Own"}
        found.add(room.fingerprint(str(place), config, None, None, runs_code=True))
    assert len(found) == 1
