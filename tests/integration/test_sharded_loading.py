"""A student under FSDP2: no process but the first holds it whole, and every one has exactly the first one's numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.model_zoo import tiny_model
from tests.ranks import start_ranks

RANK = Path(__file__).with_name("loading_rank.py")


def load_everywhere(students: list[dict[str, Any]], world_size: int = 2) -> list[list[dict[str, Any]]]:
    """Load some students on so many processes; of each student what every process said, in rank order."""
    ended = start_ranks([sys.executable, str(RANK), json.dumps(students)], world_size)
    assert [code for code, _, _ in ended] == [0] * world_size, "\n".join(error for _, _, error in ended)
    return [list(of_one) for of_one in zip(*(json.loads(output) for _, output, _ in ended), strict=True)]


def saved(family: str, folder: Path, **changes: Any) -> str:
    tiny_model(family, seed=1, **changes).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_every_process_gets_the_numbers_of_the_first_whatever_the_family(tmp_path: Path) -> None:
    adapters = {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.0}}
    students = [
        {"name": saved("llama", tmp_path / "llama")},
        {"name": saved("gpt2", tmp_path / "gpt2")},  # tied, weights of [inputs, outputs]
        {"name": saved("gemma3_text", tmp_path / "gemma"), "options": {"dtype": "bfloat16"}},
        {"name": saved("qwen2_moe", tmp_path / "moe"), "options": {"freeze": ["model.embed_tokens"]}},
        {"name": str(tmp_path / "llama"), "options": adapters},
        {"name": str(tmp_path / "llama"), "options": {"init": "random"}},
    ]
    for asked, said in zip(students, load_everywhere(students), strict=True):
        assert all(one["in_parts"] and one["equal"] for one in said), (asked, said)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads what was renamed
def test_what_only_loading_tells_is_loaded_whole_and_what_is_refused_is_refused_everywhere(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="an adapter needs peft: pip install '.[lora]'")
    base = saved("llama", tmp_path / "base")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    broken = saved("llama", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    adapter, refused, after = load_everywhere(
        [{"name": str(tmp_path / "adapter")}, {"name": broken}, {"name": base}]  # and the processes still agree
    )
    assert [(one["in_parts"], one["equal"]) for one in adapter] == [(False, True)] * 2
    lines = {one["refused"] for one in refused}
    assert len(lines) == 1
    assert "its checkpoint lacks 1 tensors" in lines.pop()
    assert all(one["in_parts"] and one["equal"] for one in after)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_no_process_but_the_first_ever_holds_the_whole(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_key_value_heads": 4}
    name = saved("llama", tmp_path / "large", **sizes)
    num_bytes = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert num_bytes > 190e6
    small = saved("llama", tmp_path / "small")  # imports are done with then
    _, (first, other) = load_everywhere([{"name": small}, {"name": name, "compared": False}])
    assert first["peak"] > 1.2 * num_bytes  # the test of the test: the whole, and a half of it sharded
    assert other["peak"] < 0.9 * num_bytes  # its half, a block or two on their way, and what malloc keeps
