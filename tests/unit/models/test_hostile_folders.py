"""Laws of model folders from strangers: opened as they are, or one line, before a byte of what they declare is made."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sra_data.errors import ModelError
from sra_data.models import declared
from sra_data.models.declared import Stored, refuse_beyond, shapes_in, stored_in
from sra_data.teacher.loading import identify, load
from sra_data.teacher.spec import TeacherSpec
from sra_train.config import StudentConfig
from sra_train.student import load_student
from tests.hostile_models import (
    EVALUATED,
    NEW_WEIGHTS,
    OPENERS,
    WEIGHTS,
    Open,
    model_folder,
    pickle_that_makes,
    refusal,
    safetensors_bytes,
    safetensors_parts,
    said_by,
    with_config,
)

BILLION = 10**9
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads names that transformers renamed


@pytest.fixture(params=OPENERS)
def opened(request: pytest.FixtureRequest) -> Open:
    """How a teacher and a student is opened."""
    return OPENERS[request.param]


# ------------------------------------------------------------------------------------------------------------ weights


def test_a_file_of_weights_that_is_none_is_one_line(opened: Open, tmp_path: Path) -> None:
    file = model_folder(tmp_path) / WEIGHTS
    whole = file.read_bytes()
    header, body = safetensors_parts(file)
    name = next(name for name in header if name != "__metadata__")
    for content in (
        b"",
        whole[:4],
        whole[:200],
        whole[:-1],
        whole + b"more",
        (1 << 60).to_bytes(8, "little") + whole[8:],
        b"\xff" * 8 + whole[8:],
        whole[:8] + b"x" * (len(whole) - len(body) - 8) + body,
        (90_000).to_bytes(8, "little") + b"[" * 90_000,
        pickle_that_makes(tmp_path / "made"),
        safetensors_bytes([1], body),
        *(
            safetensors_bytes(header | {name: header[name] | wrong}, body)
            for wrong in ({"dtype": "X9"}, {"dtype": "F64"}, {"shape": [1 << 40, 1 << 40]}, {"shape": [-1, 5]})
        ),
        safetensors_bytes(header | {name: header[name] | {"data_offsets": [0, 1 << 62]}}, body),
    ):
        file.write_bytes(content)
        assert "cannot be loaded (model.safetensors: " in refusal(opened, tmp_path)
    assert not (tmp_path / "made").exists()


def test_tensors_of_other_shapes_or_dtypes_are_refused_or_read_as_numbers(opened: Open, tmp_path: Path) -> None:
    file = model_folder(tmp_path) / WEIGHTS
    tensors = load_file(file)
    save_file({name: tensor.reshape(-1) for name, tensor in tensors.items()}, file, {"format": "pt"})
    assert "tensors in other shapes than LlamaForCausalLM" in refusal(opened, tmp_path)
    save_file({}, file, {"format": "pt"})
    assert "declares " in (said := refusal(opened, tmp_path)) or "lacks " in said
    save_file({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, file, {"format": "pt"})
    opened(tmp_path)


@pytest.mark.parametrize(
    "places",
    [
        "../elsewhere/model.safetensors",
        "/elsewhere/model.safetensors",
        "sub/model.safetensors",
        "..",
        "a\0b.safetensors",
        "pytorch_model.bin",
        5,
    ],
)
def test_an_index_names_files_of_weights_in_its_folder_alone(opened: Open, tmp_path: Path, places: object) -> None:
    model_folder(tmp_path / "elsewhere")
    file = model_folder(tmp_path / "model") / WEIGHTS
    names = shapes_in(file, who="x")
    file.rename(file.with_name("one.safetensors"))
    index = file.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")}))
    opened(tmp_path / "model")
    named = str(places).replace("/elsewhere", str(tmp_path / "elsewhere")) if str(places)[0] == "/" else places
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, named)}))
    said = refusal(opened, tmp_path / "model")
    assert "model.safetensors.index.json names " in said
    assert "no file of weights in its folder" in said


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {}}', "[" * 90_000])
def test_an_index_that_is_none_is_one_line(opened: Open, tmp_path: Path, content: str) -> None:
    (model_folder(tmp_path) / WEIGHTS).rename(tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(opened, tmp_path)


@pytest.mark.parametrize("named", ["../elsewhere/model.safetensors", "adapter_model.bin", 7])
def test_a_configuration_names_weights_in_its_folder_alone(opened: Open, tmp_path: Path, named: object) -> None:
    model_folder(tmp_path / "elsewhere")
    model_folder(tmp_path / "model", transformers_weights=named)
    assert "config.json says transformers_weights" in refusal(opened, tmp_path / "model")


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("family", "absurd"),
    [
        ("llama", {"num_hidden_layers": 100_000}),
        ("llama", {"hidden_size": 10**6}),
        ("llama", {"vocab_size": 2 * BILLION}),
        ("llama", {"intermediate_size": BILLION}),
        ("llama", {"head_dim": BILLION}),
        ("llama", {"num_key_value_heads": 100_000}),
        ("gpt2", {"n_positions": BILLION}),
        ("gpt2", {"n_positions": 200_000}),  # its mask has a number for every two positions
        ("gpt2", {"n_inner": BILLION}),
        ("mamba", {"state_size": BILLION}),
        ("mixtral", {"num_local_experts": 100_000}),
    ],
)
def test_a_model_larger_than_its_checkpoint_is_refused_before_it_is_made(
    tmp_path: Path, family: str, absurd: dict[str, Any]
) -> None:
    model_folder(tmp_path, family, **absurd)
    for opened in (*OPENERS.values(), EVALUATED):
        said = refusal(opened, tmp_path)
        assert " and more, its checkpoint has " in said
        assert "bytes; use the config.json that belongs to the checkpoint" in said


def test_what_is_refused_allocates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built on the meta device alone."""
    from transformers import LlamaConfig

    devices = []
    original = torch.nn.Embedding.__init__

    def watched(self: Any, *arguments: Any, **options: Any) -> None:
        devices.append(torch.empty(0).device.type)
        original(self, *arguments, **options)

    monkeypatch.setattr(torch.nn.Embedding, "__init__", watched)
    config = LlamaConfig(vocab_size=1 << 30, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ModelError, match=r"x: its config.json declares 34,359,738,368 parameters and more"):
        refuse_beyond(config, Stored(9, 1000), who="x", trust_remote_code=False)
    assert devices == ["meta"]


def test_new_weights_are_no_larger_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path, vocab_size=2 * BILLION, hidden_size=10**6)
    assert "too many for this machine" in refusal(NEW_WEIGHTS, tmp_path)
    monkeypatch.setattr(declared, "MOST_NEW_MODULES", 1000)
    with_config(tmp_path, vocab_size=97, hidden_size=32, num_hidden_layers=100_000)
    assert "declares 1,001 modules and more, too many for this machine" in refusal(NEW_WEIGHTS, tmp_path)


@pytest.mark.parametrize(
    "absurd",
    [
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 10**30},
        {"num_labels": BILLION},
        {"num_hidden_layers": float("inf")},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "3"},
        {"num_hidden_layers": 2.5},
        {"num_hidden_layers": [3]},
        {"hidden_size": 0},
        {"hidden_size": -32},
        {"hidden_size": 10**30},
        {"hidden_size": BILLION},
        {"vocab_size": 10**12},
        {"vocab_size": "97"},
        {"vocab_size": 0},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"head_dim": 7},
        {"rope_parameters": {"rope_type": "nope"}},
        {"hidden_act": "nope"},
        {"hidden_act": 5},
        {"model_type": "nope"},
        {"model_type": 5},
        {"model_type": {}},
        {"model_type": None},
        {"dtype": "nope"},
        {"auto_map": 5},
        {"to_dict": 3},
        {"get_text_config": 5},
        {"text_config": 5},
        {"quantization_config": 5},
        {"attn_implementation": "somebody/kernel"},
        {"id2label": 5},
        {"return_dict": False},
    ],
    ids=str,
)
def test_an_absurd_configuration_is_one_line_or_no_matter(tmp_path: Path, absurd: dict[str, Any]) -> None:
    model_folder(tmp_path, **absurd)
    for opened in [*OPENERS.values(), NEW_WEIGHTS, lambda folder: identify(TeacherSpec(str(folder)))]:
        said = said_by(opened, tmp_path)
        assert "\n" not in said
        assert len(said) < 1000


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[1]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 90_000, b" " * (5 << 20)]
)
def test_a_configuration_that_is_no_object_is_one_line(opened: Open, tmp_path: Path, content: bytes) -> None:
    (model_folder(tmp_path) / "config.json").write_bytes(content)
    assert "config.json cannot be read (" in refusal(opened, tmp_path)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_code_of_the_hub_is_not_named_by_a_configuration(opened: Open, tmp_path: Path, key: str) -> None:
    model_folder(tmp_path, **{key: "somebody/kernel"})
    assert f"config.json says {key} 'somebody/kernel', code of the Hub" in refusal(opened, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"max_length": "x"}', b"[" * 100_000])
def test_a_generation_config_is_one_line_or_no_matter(opened: Open, tmp_path: Path, content: bytes) -> None:
    (model_folder(tmp_path) / "generation_config.json").write_bytes(content)
    assert "\n" not in said_by(lambda: opened(tmp_path))


# --------------------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_in_a_folder_does_not_run_unless_asked(opened: Open, tmp_path: Path, model_type: str) -> None:
    made = tmp_path / "made"
    folder = model_folder(
        tmp_path / "model",
        model_type=model_type,
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    (folder / "evil.py").write_text(f"open({str(made)!r}, 'w').close()\n")
    if model_type == "llama":
        opened(folder)  # as transformers' own class
    else:
        refusal(opened, folder)
    assert not made.exists()
    assert not [name for name in sys.modules if name.endswith(".evil")]
    with pytest.raises(ModelError):  # asked, it does: what was not run above could have been
        load(TeacherSpec(str(with_config(folder, model_type="evil")), device="cpu", trust_remote_code=True))
    assert made.exists()
    for name in [name for name in sys.modules if name.endswith(".evil")]:
        del sys.modules[name]


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_pickle_of_weights_is_refused_and_never_run(opened: Open, tmp_path: Path, is_indexed: bool) -> None:
    made = tmp_path / "made"
    folder = model_folder(tmp_path / "model")
    names = shapes_in(folder / WEIGHTS, who="x")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle_that_makes(made))
    if is_indexed:
        for kind in ("pytorch_model.bin", WEIGHTS):
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model.bin")}
            (folder / f"{kind}.index.json").write_text(json.dumps(index))
    refusal(opened, folder)
    said = refusal(lambda place: load(TeacherSpec(str(place), device="cpu", allow_pickle=True)), folder)
    assert "cannot be loaded" in said or "names" in said  # even then nothing but tensors is read
    assert not made.exists()


# ----------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the tiny model."""
    peft = pytest.importorskip("peft")
    from tests.model_zoo import tiny_model

    adapted = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def with_adapter(adapter: Path, base: Path, **options: Any) -> object:
    return load(TeacherSpec(str(base), device="cpu", adapter=str(adapter), **options))


def test_a_pickled_adapter_is_refused_and_never_run(tmp_path: Path, adapter: Path) -> None:
    base, made = model_folder(tmp_path / "model"), tmp_path / "made"
    with_adapter(adapter, base)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle_that_makes(made))
    said = refusal(lambda place: with_adapter(place, base), adapter)
    assert "adapter_model.bin is a pickle, which may hold code; save it as safetensors" in said
    refusal(lambda place: with_adapter(place, base, allow_pickle=True), adapter)
    (adapter / "config.json").write_bytes((base / "config.json").read_bytes())
    for opened in OPENERS.values():  # as a model's folder that holds nothing else
        refusal(opened, adapter)
    assert not made.exists()


@pytest.mark.parametrize(
    "absurd",
    [
        {"r": BILLION},
        {"r": "x"},
        {"r": 0},
        {"rank_pattern": {"q_proj": BILLION}},
        {"peft_type": "nope"},
        {"peft_type": None},
        {"target_modules": 5},
        {"target_modules": ["nope"]},
        {"lora_alpha": "x"},
        {"auto_mapping": {"parent_library": "evil", "base_model_class": "x"}},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": BILLION, "task_type": "CAUSAL_LM"},
    ],
    ids=str,
)
def test_an_absurd_adapter_is_one_line_or_no_matter(tmp_path: Path, adapter: Path, absurd: dict[str, Any]) -> None:
    base = model_folder(tmp_path / "model")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | absurd))
    assert "\n" not in said_by(lambda: with_adapter(adapter, base))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"r": 2}'])
def test_an_adapters_configuration_that_is_none_is_one_line(tmp_path: Path, adapter: Path, content: bytes) -> None:
    (adapter / "adapter_config.json").write_bytes(content)
    base = model_folder(tmp_path / "model")
    assert "adapter" in refusal(lambda place: with_adapter(place, base), adapter)


# ------------------------------------------------------------------------------------------------- what is let through


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "qwen2_moe", "mamba", "bloom", "mpt"])
def test_a_checkpoint_in_its_smallest_form_is_as_large_as_its_model(tmp_path: Path, family: str) -> None:
    folder = model_folder(tmp_path, family)
    tensors = load_file(folder / WEIGHTS)
    eighth = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    save_file(eighth, folder / WEIGHTS, {"format": "pt"})
    identity = identify(TeacherSpec(str(folder)))
    stored = stored_in(str(folder), None, who="x")
    assert stored is not None
    assert stored.num_tensors == len(tensors)
    refuse_beyond(identity.config, stored, who="x", trust_remote_code=False)


def test_a_name_that_is_no_folder_has_no_files(tmp_path: Path) -> None:
    for name in ("no/such-model", "a\0b", str(tmp_path / "none")):
        assert stored_in(name, None, who="x") is None


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(opened: Open, tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    for name in ("config.json", WEIGHTS):
        folder = model_folder(tmp_path / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refusal(opened, folder)


def test_a_random_student_is_still_made_from_a_configuration_alone(tmp_path: Path) -> None:
    (model_folder(tmp_path) / WEIGHTS).unlink()
    load_student(str(tmp_path), StudentConfig(init="random"))
