"""A teacher on a GPU: says what it says on a CPU, in whole, in halves where memory is short, spread, and quantized."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sra_data.errors import ConfigError
from sra_data.models.output_head import OutputHead
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.stage import cache_teacher
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.loading import load
from sra_data.teacher.spec import CaptureOptions, TeacherSpec
from sra_data.terminal import Reporter
from tests.integration.command_lines import sra_data, write_pair, write_six_units
from tests.model_zoo import tiny_model

OPTIONS = CaptureOptions(layers=(1, "last"), hidden_dtype="fp32", top_k=5, top_k_dtype="fp32")
FAMILIES = ("llama", "gpt2", "gemma2", "qwen2", "mistral", "phi", "falcon_alibi", "mamba")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def examples(*stops: int, vocabulary: int = 90) -> list[Example]:
    generator = np.random.default_rng(0)
    ids = generator.integers(3, vocabulary, size=max(stops)).astype(np.int32)
    return [Example(f"{stop}", ids[:stop], np.arange(2, stop, dtype=np.int32)) for stop in stops]


def said_by(model: torch.nn.Module, asked: list[Example], options: CaptureOptions = OPTIONS) -> list[Captured]:
    capture = TeacherCapture(model, options)
    try:
        return capture(asked)
    finally:
        capture.close()


def agree(found: list[Captured], expected: list[Captured], tolerance: float) -> None:
    """States relative to their size, attention and log-probabilities as they are."""
    for one, other in zip(found, expected, strict=True):
        assert one.is_finite
        assert one.hidden.keys() == other.hidden.keys() != set()
        for layer, states in other.hidden.items():
            size = np.abs(states.array).max()
            assert np.abs(one.hidden[layer].array - states.array).max() <= tolerance * size
        for layer, mass in other.attention.items():
            np.testing.assert_allclose(one.attention[layer], mass, atol=tolerance)
        np.testing.assert_allclose(one.next_log_prob, other.next_log_prob, atol=20 * tolerance)
        np.testing.assert_allclose(one.log_tails, other.log_tails, atol=20 * tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_on_a_gpu_what_it_says_on_a_cpu(family: str) -> None:
    options = OPTIONS if family != "mamba" else CaptureOptions(hidden_dtype="fp32", top_k=5, attention=False)
    asked = examples(9, 37, 20)
    expected = said_by(tiny_model(family), asked, options)
    found = said_by(tiny_model(family).cuda(), asked, options)
    agree(found, expected, 1e-4)
    same = [np.mean(one.top_k_ids == other.top_k_ids) for one, other in zip(found, expected, strict=True)]
    assert min(same) > 0.98  # but where two are equal to rounding


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_bf16_stays_near_float32(family: str) -> None:
    asked = examples(9, 37, 20)
    expected = said_by(tiny_model(family), asked)
    agree(said_by(tiny_model(family).cuda().bfloat16(), asked), expected, 0.06)


@pytest.mark.parametrize("family", ["llama", "phi", "gemma2", "cohere"])
def test_the_head_keeps_its_float32_sums(family: str) -> None:
    head = OutputHead.from_model(tiny_model(family).cuda().bfloat16())
    exact = OutputHead.from_model(tiny_model(family).cuda().bfloat16().double())
    hidden = torch.randn(64, head.weight.shape[1], device="cuda").bfloat16()
    expected = exact.logits(hidden.double()).float()
    torch.testing.assert_close(head.float32_logits(hidden), expected, atol=1e-4, rtol=1e-4)
    assert (head.logits(hidden).float() - expected).abs().max() > 1e-3  # or there would be nothing to keep


def test_a_batch_that_does_not_fit_is_halved_and_says_the_same() -> None:
    model = tiny_model("llama", num_hidden_layers=2, max_position_embeddings=512, **WIDE).cuda()
    asked = examples(*range(440, 504))
    capture = TeacherCapture(model, OPTIONS)
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        expected = capture(asked)
        assert capture.num_splits == 0
        peak = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((held + 0.6 * (peak - held)) / whole)
        found = capture(asked)
        assert capture.num_splits >= 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        capture.close()
    agree(found, expected, 1e-5)


def test_a_teacher_half_on_a_gpu_and_half_in_memory_says_the_same(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    asked = examples(9, 37, 20)
    parts: dict[str, Any] = {"model.embed_tokens": 0, "model.norm": "cpu", "model.rotary_emb": 0, "lm_head": "cpu"}
    layers = {f"model.layers.{number}": (0, "cpu", "disk")[number % 3] for number in range(3)}
    model = dispatch_model(tiny_model("llama"), {**parts, **layers}, main_device=0, offload_dir=str(tmp_path))
    options = CaptureOptions(layers=(1, 2, "last"), hidden_dtype="fp32", top_k=5)
    agree(said_by(model, asked, options), said_by(tiny_model("llama"), asked, options), 1e-4)


def test_device_map_auto_takes_the_gpu(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    teacher = load(TeacherSpec(str(tmp_path), device_map="auto", dtype="fp32"))
    assert teacher.device.type == "cuda"
    asked = examples(9, 37, 20)
    agree(said_by(teacher.model, asked), said_by(tiny_model("llama"), asked), 1e-4)


@pytest.mark.parametrize(("bits", "tolerance"), [("8bit", 0.25), ("4bit", 0.9)])
def test_a_quantized_teacher_is_captured_near_the_whole_one(tmp_path: Path, bits: Any, tolerance: float) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: the extra [quantization]")
    tiny_model("llama", **WIDE).save_pretrained(tmp_path)
    asked = examples(9, 37, 20)
    whole = load(TeacherSpec(str(tmp_path), device="cuda", dtype="bf16"))
    small = load(TeacherSpec(str(tmp_path), device="cuda", dtype="bf16", quantization=bits))
    found, expected = said_by(small.model, asked), said_by(whole.model, asked)
    different = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.is_finite
        last = max(one.hidden)
        ours, theirs = one.hidden[last].array, other.hidden[last].array
        cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
        different = max(different, float(1 - cosines.min()))
    assert 0 < different < tolerance


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and the shards of their corpus, of six units."""
    folder = tmp_path_factory.mktemp("aligned")
    write_pair(folder)
    write_six_units(folder / "data.jsonl")
    models = ("--teacher", folder / "teacher", "--student", folder / "student")
    done = sra_data(
        "align", *models, "--data", folder / "data.jsonl", "--out", folder / "shards", "--overlong", "truncate"
    )
    assert done.exit_code == 0, done.output
    return folder


def cached(aligned: Path, out: Path, **options: Any) -> dict[str, bytes]:
    """The teacher's parts after `cache-teacher` on a copy of the shards."""
    if not out.exists():
        shutil.copytree(aligned / "shards", out)
    spec = TeacherSpec(str(aligned / "teacher"), **{"device": "cuda", **options.pop("teacher", {})})
    cache_teacher(CacheOptions(shards=str(out), teacher=spec, **options), Reporter())
    return {path.name: path.read_bytes() for path in sorted(out.glob("teachers/*/part-*.parquet"))}


def test_units_in_turn_and_all_at_once_give_the_same_bytes_on_a_gpu(aligned: Path, tmp_path: Path) -> None:
    whole = cached(aligned, tmp_path / "whole", batch_tokens=2048)
    for units in ("3:6", "0:3"):
        parts = cached(aligned, tmp_path / "parts", batch_tokens=2048, units=units)
    assert len(whole) == 6
    assert parts == whole
    assert sra_data("verify", tmp_path / "parts").exit_code == 0


@pytest.mark.parametrize("options", [{"granularity": "span"}, {"hidden_dtype": "int8"}, {"layers": (1, 2, "last")}])
def test_what_is_kept_on_a_gpu_is_faithful(aligned: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    parts = cached(aligned, tmp_path / "kept", capture=CaptureOptions(**options))
    assert len(parts) == 6
    assert sra_data("verify", tmp_path / "kept").exit_code == 0


def test_more_workers_than_gpus_are_refused_before_anything_is_loaded(aligned: Path, tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=rf"--workers {count + 1}: each takes 1 GPU, and this machine has {count}"):
        cached(aligned, tmp_path / "workers", num_workers=count + 1)
