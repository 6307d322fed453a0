"""Laws of `estimate --gpu`: hours are operations over operations a second, and what cannot be held is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from benchmarks.cache_shards import SIDE, side_row, write_side
from sra_data.errors import ConfigError
from sra_data.models.declared import declared_model
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.estimate.accelerators import ACCELERATORS, accelerator_of
from sra_data.stages.estimate.fleet import ROOM_FOR_WEIGHTS, TeacherSize
from sra_data.stages.estimate.stage import EstimateOptions, EstimateSummary, estimate
from sra_data.teacher.spec import TeacherSpec
from sra_data.terminal import Reporter
from tests.integration.command_lines import sra_data
from tests.model_zoo import FAMILIES, tiny_model
from tests.unit.stages.cache.worlds import changed

LENGTH, PROMPT, EXAMPLES = 64, 16, 50
PLAIN = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}


def write_config(folder: Path, family: str = "llama", **sizes: object) -> Path:
    """A teacher of which nothing but its configuration is there."""
    config = AutoConfig.for_model(family, **{"vocab_size": 512, **PLAIN, "num_key_value_heads": 2, **sizes})
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty examples of 64 tokens, 48 of them responses."""
    folder = tmp_path_factory.mktemp("fleet") / "shards"
    ids = np.arange(LENGTH, dtype=np.int32)
    write_side(folder, [side_row(f"e{number}", ids, PROMPT) for number in range(EXAMPLES)])
    return folder


def planned(shards: Path, teacher: Path, *, cache: dict | None = None, **changes: object) -> EstimateSummary:
    spec = TeacherSpec(str(teacher), device="cpu", dtype="bf16")
    options = changed(CacheOptions(str(shards), spec, side=SIDE), **(cache or {}))
    return estimate(replace(EstimateOptions(options, is_timed=False), **changes), Reporter())


def test_hours_are_operations_over_what_all_accelerators_do(shards: Path, tmp_path: Path) -> None:
    teacher = write_config(tmp_path / "teacher")
    said = planned(shards, teacher, gpu="a100", examples=10**9, utilisation=0.5, write_rate=2.0, price=1.5)
    assert said.fleet is not None
    d, kv, wide, layers, vocabulary = 64, 32, 96, 4, 512
    block = d * d * 2 + d * kv * 2 + 3 * d * wide + 2 * d  # two norms
    body = layers * block + d
    positions = LENGTH - PROMPT + 1  # and the one before the first
    each = 2 * body * LENGTH + 2 * layers * d * LENGTH**2 + 2 * d * vocabulary * positions
    assert said.fleet.operations == pytest.approx(10**9 * each)
    forward = 10**9 * each / (312e12 * 0.5)
    assert said.fleet.forward_hours == pytest.approx(forward / 3600)
    parts = said.num_bytes - planned(shards, teacher).num_bytes * 0
    write = (parts - 2 * d * vocabulary - LENGTH * (4 + 2 * d)) / 2e9
    assert said.fleet.write_hours == pytest.approx(write / 3600, rel=1e-6)
    assert said.fleet.hours == pytest.approx((forward + write) / 3600, rel=1e-6)
    assert said.fleet.cost == pytest.approx(1.5 * said.fleet.hours)
    assert said.num_tokens == 10**9 * LENGTH


def test_small_batches_are_no_faster_than_the_weights_can_be_read(shards: Path, tmp_path: Path) -> None:
    teacher = write_config(tmp_path / "teacher")
    config = AutoConfig.from_pretrained(teacher)
    size = TeacherSize.of(declared_model(config, who="x", trust_remote_code=False))
    said = planned(shards, teacher, cache={"batch_tokens": LENGTH}, gpu="a100", examples=10**9, utilisation=1.0).fleet
    assert said is not None
    by_reading = 10**9 * size.read * 2 / 2039e9
    assert by_reading > said.operations / 312e12  # type: ignore[operator]
    assert said.forward_hours == pytest.approx(by_reading / 3600, rel=1e-6)


def test_so_many_accelerators_take_so_many_times_less_and_cost_the_same(shards: Path, tmp_path: Path) -> None:
    teacher = write_config(tmp_path / "teacher")
    one, many = (planned(shards, teacher, gpu="h100", gpus=n, examples=64_000_000, price=2.0).fleet for n in (1, 64))
    assert one is not None
    assert many is not None
    assert one.hours == pytest.approx(64 * many.hours, rel=1e-3)
    assert one.cost == pytest.approx(many.cost, rel=1e-3)
    assert many.store_needed == pytest.approx(64 * one.store_needed, rel=1e-3)
    few_units = planned(shards, teacher, gpu="h100", gpus=64).fleet
    assert few_units is not None
    assert few_units.teachers == 1  # one unit: 63 wait


def test_a_slow_store_makes_all_wait(shards: Path, tmp_path: Path) -> None:
    teacher = write_config(tmp_path / "teacher")
    free = planned(shards, teacher, gpu="h100", gpus=8, examples=10**8)
    assert free.fleet is not None
    rate = free.fleet.store_needed / 4
    slow = planned(shards, teacher, gpu="h100", gpus=8, examples=10**8, store_rate=rate).fleet
    assert slow is not None
    assert slow.hours == pytest.approx(4 * free.fleet.hours)
    assert slow.gpu_hours == pytest.approx(8 * slow.hours)


def test_a_teacher_too_large_for_one_is_held_by_several_and_by_fewer_than_needed_refused(
    shards: Path, tmp_path: Path
) -> None:
    large = write_config(tmp_path / "large", hidden_size=8192, num_hidden_layers=80, intermediate_size=28672)
    size = TeacherSize.of(declared_model(AutoConfig.from_pretrained(large), who="x", trust_remote_code=False))
    needed = 2 * size.parameters / (ROOM_FOR_WEIGHTS * 80e9)
    assert 2 < needed <= 4
    found = planned(shards, large, gpu="h100", gpus=8, examples=10**6).fleet
    assert found is not None
    assert (found.gpus_per_teacher, found.teachers) == (4, 2)
    with pytest.raises(
        ConfigError, match=r"--gpus 2: the teacher's weights are .* one h100 has room for 64.0 GB of them: give 4"
    ):
        planned(shards, large, gpu="h100", gpus=2)
    quantized = planned(shards, large, gpu="h100", gpus=2, cache={"quantization": "4bit"}).fleet
    assert quantized is not None
    assert quantized.gpus_per_teacher == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2_moe"])
def test_parameters_are_the_models_and_a_mixture_works_with_its_active_experts(family: str) -> None:
    model = tiny_model(family)
    size = TeacherSize.of(model)
    assert size.parameters == sum(one.numel() for one in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    dense = size.parameters - head - (0 if tied else head)
    if "num_experts_per_tok" not in FAMILIES[family]:
        assert size.body == dense
        return
    experts = sum(one.numel() for name, one in model.named_parameters() if ".experts." in name)
    assert experts > 0
    assert size.body == pytest.approx(dense - experts / 2)  # two of four


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral"])
def test_a_configuration_declares_what_its_model_has_tied_or_not(family: str) -> None:
    model = tiny_model(family)
    assert TeacherSize.of(declared_model(model.config, who="x", trust_remote_code=False)) == TeacherSize.of(model)


def test_examples_scale_everything_but_head_and_embeddings(shards: Path, tmp_path: Path) -> None:
    teacher = write_config(tmp_path / "teacher")
    one, ten = (planned(shards, teacher, examples=number) for number in (EXAMPLES, 10 * EXAMPLES))
    files = 2 * 64 * 512 + LENGTH * (4 + 2 * 64)
    assert ten.num_bytes - files == pytest.approx(10 * (one.num_bytes - files), rel=1e-6)
    assert (ten.num_examples, ten.num_positions) == (10 * one.num_examples, 10 * one.num_positions)
    assert one.num_bytes == planned(shards, teacher).num_bytes
    assert [a.num_bytes > b.num_bytes for a, b in zip(ten.alternatives, one.alternatives, strict=True)].count(
        False
    ) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "h10"}, r"--gpu h10: not known; did you mean h100\? choose one of a10, a100, b200, h100"),
        ({"gpu": "abacus"}, r"--gpu abacus: not known; choose one of a10, a100"),
        ({"gpu": "h100", "gpus": 0}, "--gpus 0: must be above 0"),
        ({"gpu": "h100", "gpus": -8}, "--gpus -8: must be above 0"),
        ({"gpus": 8}, "--gpus 8: hours of what"),
        ({"gpu": "h100", "utilisation": 1.5}, "--utilisation 1.5: must be at most 1"),
        ({"gpu": "h100", "price": float("nan")}, "--price nan: must be above 0"),
        ({"price": 2.0}, "--price 2.0: says something of accelerators"),
        ({"examples": 0}, "--examples 0: must be above 0"),
    ],
)
def test_plans_that_mean_nothing_are_refused(shards: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(shards, write_config(tmp_path / "teacher"), **changes)


def test_every_accelerator_is_found_by_its_name_and_says_where_its_numbers_are_from() -> None:
    for name, one in ACCELERATORS.items():
        assert accelerator_of(name.upper()) is one
        assert one.name == name
        assert min(one.teraflops, one.gigabytes, one.bandwidth) > 0
        assert "sheet" in one.source or "whitepaper" in one.source


def test_the_command_says_the_same_in_words_and_as_json(shards: Path, tmp_path: Path) -> None:
    teacher = write_config(tmp_path / "teacher")
    words = ("estimate", shards, "--teacher", teacher, "--side", SIDE, "--no-time", "--gpu", "h100", "--gpus", 16)
    found = json.loads(sra_data(*words, "--examples", 10**7, "--price", 2.5, "--json").output)
    assert found["planned_examples"] == 10**7
    fleet = found["fleet"]
    assert (fleet["gpus"], fleet["model"], fleet["utilisation"]) == (16, "NVIDIA H100 SXM 80 GB", 0.4)
    said = sra_data(*words, "--examples", 10**7, "--price", 2.5).output
    for part in (
        "on 16 x NVIDIA H100 SXM 80 GB",
        "10,000,000 examples",
        "40% (assumed)",
        f"{fleet['cost']:,.2f} at 2.5",
    ):
        assert part in said
