"""Laws of the stage: a teacher that is not admitted leaves no trace in the shards, not even a plan."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sra_data.errors import ModelError, ShardError
from sra_data.shards.store import Manifest
from sra_data.stages.cache import choose, parts, unit
from sra_data.stages.cache.stage import cache_teacher
from sra_data.teacher import provenance
from sra_data.teacher.loading import LoadedTeacher
from sra_data.terminal import Reporter
from tests.model_zoo import COMMON, tiny_model
from tests.tokenizer_zoo import train_byte_level
from tests.unit.stages.cache.test_choose import hashes
from tests.unit.stages.cache.worlds import LONGEST, NUM_ROWS, World, save_teacher, side_row

TORCH = version("torch")  # without the build that torch itself names


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    train_byte_level().save_pretrained(folder)
    return folder


def refused(world: World, folder: Path, error: type[Exception] = ModelError, **options: Any) -> str:
    """The refusal, one line; no file is written, changed or gone."""
    before = hashes(world.shards)
    with pytest.raises(error) as raised:
        cache_teacher(world.options(name=str(folder), **options), Reporter())
    assert "\n" not in str(raised.value)
    assert hashes(world.shards) == before
    assert not (world.shards / "teachers").exists()
    return str(raised.value)


def test_missing_tensors_are_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "deeper")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert "lacks 9 tensors of LlamaForCausalLM" in refused(world, folder)


def test_an_encoder_with_a_decoder_is_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
    sizes |= {f"{part}_{what}": 4 for part in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bart", **COMMON, **sizes))
    folder = saved(tmp_path / "bart", model)
    config = json.loads((folder / "config.json").read_text()) | {"is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert "bart is an encoder with a decoder" in refused(world, folder)


def test_a_model_that_is_not_causal_is_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    folder = saved(tmp_path / "gemma", tiny_model("gemma3_text", use_bidirectional_attention=True))
    assert "not causal, what it says at a position differs by" in refused(world, folder)


def test_positions_that_no_configuration_tells_of_are_found_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "gpt2", tiny_model("gpt2", n_positions=LONGEST - 1))
    assert f"teacher {folder} reads {LONGEST - 1}; run" in refused(world, folder, error=ShardError)
    monkeypatch.setattr(choose, "most_positions_of", lambda *_: None)
    message = refused(world, folder)
    assert f"the longest example has {LONGEST} tokens, it reads {LONGEST - 1} (" in message
    assert f"--teacher-max-length {LONGEST - 1}, which adds a side" in message


def test_inner_layers_of_another_width_are_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    folder = saved(tmp_path / "opt", tiny_model("opt", word_embed_proj_dim=16))
    assert "32 wide, its output head reads 16" in refused(world, folder, layers=(1, "last"))
    assert cache_teacher(world.options(name=str(folder)), Reporter()).root is not None


def test_rows_that_depend_on_their_batch_are_refused_and_cached_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedTeacher.__init__

    def with_hook(self: LoadedTeacher, model: Any, *others: Any) -> None:
        model.model.rotary_emb.register_forward_hook(
            lambda _, inputs, output: (output[0] * (1 + 0.02 * output[0].shape[1]), output[1])
        )
        loaded(self, model, *others)

    monkeypatch.setattr(LoadedTeacher, "__init__", with_hook)
    shortest = min(len(side_row(number).ids) for number in range(NUM_ROWS) if number != 3)
    for batch_tokens in (None, 30, 2 * shortest):
        message = refused(world, world.teacher, batch_tokens=batch_tokens)
        assert f"beside one of {LONGEST} in its batch" in message
    assert cache_teacher(world.options(batch_tokens=1), Reporter()).root is not None


def test_a_state_space_teachers_inner_layers_are_cached(world: World, tmp_path: Path) -> None:
    folder = saved(tmp_path / "mamba", tiny_model("mamba"))
    found = cache_teacher(world.options(name=str(folder), layers=(1, 2, "last"), attention=False), Reporter())
    assert found.root is not None


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads names that transformers renamed
def test_adapters_that_say_something_else_have_folders_of_their_own(world: World, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    peft.get_peft_model(tiny_model("llama"), options).save_pretrained(tmp_path / "8")
    shutil.copytree(tmp_path / "8", tmp_path / "64")
    config = json.loads((tmp_path / "64" / "adapter_config.json").read_text()) | {"lora_alpha": 64}
    (tmp_path / "64" / "adapter_config.json").write_text(json.dumps(config))
    adapters = (None, str(tmp_path / "8"), str(tmp_path / "64"))
    found = [cache_teacher(world.options(adapter=adapter), Reporter()) for adapter in adapters]
    assert len({one.section for one in found}) == len({one.root for one in found}) == 3


# --------------------------------------------------------------------------------------------------------- provenance


def other_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """From here on the teacher says it speaks elsewhere."""
    true = provenance.environment_of
    monkeypatch.setattr(unit, "environment_of", lambda teacher: true(teacher) | values)


def test_what_units_were_made_by_stands_in_the_section(world: World) -> None:
    summary = cache_teacher(world.options(), Reporter())
    (found,) = Manifest.load(world.shards).sealed(summary.section)["environments"]
    assert (found["device"], found["dtype"], found["attention"]) == ("cpu", "float32", "sdpa")
    assert found["torch"] == TORCH
    assert f"made by cpu, float32, sdpa, torch {TORCH} " in "\n".join(summary.lines())


def test_units_of_another_kind_of_device_are_not_added_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        other_environment(elsewhere, device="cuda")
        cache_teacher(world.options(units="0:1"), Reporter())
    before = hashes(world.shards)
    with pytest.raises(ShardError, match=r"units made with unlike device cuda and cpu; make the rest as the first"):
        cache_teacher(world.options(), Reporter())
    assert hashes(world.shards) == before


def test_units_made_apart_in_unlike_ways_are_not_sealed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither process saw the other's units when it began."""
    cache_teacher(world.options(units="0:1"), Reporter())
    other_environment(monkeypatch, attention="eager")
    monkeypatch.setattr(parts, "refuse_mixture", lambda *_, **__: None)
    with pytest.raises(ShardError, match="units made with unlike attention sdpa and eager"):
        cache_teacher(world.options(), Reporter())
    (name,) = Manifest.load(world.shards).names("teachers")
    assert Manifest.load(world.shards).section(f"teachers/{name}")["root"] is None


def test_a_mixture_of_versions_is_sealed_and_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_teacher(world.options(units="0:1"), Reporter())
    other_environment(monkeypatch, torch="9.9")
    summary = cache_teacher(world.options(), Reporter())
    assert [one["torch"] for one in summary.environments] == [TORCH, "9.9"]
    assert "units made by 2 environments that differ in versions or device" in "\n".join(summary.lines())
