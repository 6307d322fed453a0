"""Laws of large teachers: spread over devices they say what they say on one; what is quantized is opened or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sra_data.errors import ConfigError, ModelError
from sra_data.models.decoder import input_embeddings, states_offset
from sra_data.models.output_head import OutputHead, check_output_head
from sra_data.stages.cache.options import CacheOptions, check_options
from sra_data.teacher import loading
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.loading import load, quantization_of
from sra_data.teacher.spec import CaptureOptions, TeacherSpec
from tests.model_zoo import tiny_model

OPTIONS = CaptureOptions(layers=(1, 2, "last"), hidden_dtype="fp32", top_k=5)


def examples() -> list[Example]:
    ids = np.arange(3, 40, dtype=np.int32)
    return [Example(f"{stop}", ids[:stop], np.arange(2, stop, dtype=np.int32)) for stop in (9, 37)]


def said_by(model: torch.nn.Module) -> list[Captured]:
    capture = TeacherCapture(model, OPTIONS)
    try:
        return capture(examples())
    finally:
        capture.close()


def spread(model: Any, folder: Path) -> Any:
    """A model in memory and on disk by turns, its head and embeddings on disk: what has no room on a GPU."""
    from accelerate import dispatch_model

    parts = {"model.embed_tokens": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    layers = {f"model.layers.{number}": ("cpu", "disk")[number % 2] for number in range(3)}
    return dispatch_model(model, {**parts, **layers}, offload_dir=str(folder))


def test_a_teacher_spread_over_devices_says_what_it_says_on_one(tmp_path: Path) -> None:
    expected = said_by(tiny_model("llama"))
    model = spread(tiny_model("llama"), tmp_path)
    assert model.lm_head.weight.device.type == model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    check_output_head(model, OutputHead.from_model(model))
    assert states_offset(model) == 0
    for one, other in zip(expected, said_by(model), strict=True):
        assert one.hidden.keys() == other.hidden.keys() == {1, 2, 3}
        for layer in one.hidden:
            np.testing.assert_array_equal(one.hidden[layer].array, other.hidden[layer].array)
            np.testing.assert_array_equal(one.attention[layer], other.attention[layer])
        np.testing.assert_array_equal(one.top_k_ids, other.top_k_ids)
        np.testing.assert_array_equal(one.next_log_prob, other.next_log_prob)


def test_head_and_embeddings_of_a_spread_teacher_are_kept_with_their_numbers(tmp_path: Path) -> None:
    whole, model = tiny_model("llama"), spread(tiny_model("llama"), tmp_path)
    head, embeddings = OutputHead.from_model(model), input_embeddings(model)
    assert torch.equal(head.weight, whole.lm_head.weight)
    assert torch.equal(embeddings.weight, whole.model.embed_tokens.weight)
    assert model.lm_head.weight.device.type == "meta"  # and stays where there is room for it


def test_device_map_auto_is_accelerates_and_nothing_is_moved_afterwards(tmp_path: Path, monkeypatch) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    handed: list[Any] = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(name: str, **options: Any) -> Any:
        handed.append(options.get("device_map"))
        return original(name, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    teacher = load(TeacherSpec(str(tmp_path), device_map="auto", dtype="fp32"))
    assert teacher.fingerprint == load(TeacherSpec(str(tmp_path), device="cpu", dtype="fp32")).fingerprint
    assert handed == ["auto", None]


def test_a_map_beside_a_device_or_several_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--device cuda:1 with --device-map auto: .*CUDA_VISIBLE_DEVICES"):
        check_options(CacheOptions(teacher=TeacherSpec(device="cuda:1", device_map="auto")))
    with pytest.raises(ConfigError, match="--workers 2 with --device-map auto: each worker would load"):
        check_options(CacheOptions(teacher=TeacherSpec(device_map="auto"), num_workers=2))
    with pytest.raises(ConfigError, match="--device-map balanced: unknown; choose one of auto"):
        check_options(CacheOptions(teacher=TeacherSpec(device_map="balanced")))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- quantization


@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes were installed: what is made here is its configuration alone."""
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))


def test_four_bits_are_nf4_and_compute_in_the_teachers_dtype(with_bitsandbytes) -> None:
    found = loading._quantization(TeacherSpec("t", quantization="4bit", dtype="bf16", device="cpu"), None)
    said = found.load_in_4bit, found.load_in_8bit, found.bnb_4bit_quant_type, found.bnb_4bit_compute_dtype
    assert said == (True, False, "nf4", torch.bfloat16)
    found = loading._quantization(TeacherSpec("t", quantization="8bit", dtype="fp16", device="cpu"), None)
    assert (found.load_in_4bit, found.load_in_8bit) == (False, True)


def test_weights_that_are_quantized_already_are_not_quantized_again(with_bitsandbytes) -> None:
    with pytest.raises(ModelError, match=r"--quantization 4bit: .* are quantized already \(gptq\); leave it out"):
        loading._quantization(TeacherSpec("t", quantization="4bit"), "gptq")


def test_how_weights_were_quantized_is_what_their_configuration_says() -> None:
    assert quantization_of(SimpleNamespace()) is None
    assert quantization_of(SimpleNamespace(quantization_config={"quant_method": "awq"})) == "awq"
    assert quantization_of(SimpleNamespace(quantization_config={})) == "a method without a name"


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_quantized_checkpoint_without_its_library_is_one_line(method: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not {"gptqmodel", "auto_gptq", "awq"} & set(sys.modules)
    with pytest.raises(ModelError) as caught:
        load(TeacherSpec(str(tmp_path), device="cpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert f"teacher {tmp_path}: its weights are quantized ({method}) and cannot be opened here (" in message
    assert message.endswith("install what that needs, or use its unquantized checkpoint")
