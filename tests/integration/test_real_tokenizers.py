"""The three commands on real text with real tokenizers, and randomly initialised models of those families, cut down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sra_data.shards.schema import side_text
from sra_data.shards.store import ShardSet
from tests.integration.command_lines import sra_data, sra_train

NARROW = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen1.5-1.8b": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 4},
    "tinyllama-1.1b": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "num_key_value_heads": 2},
}  # fmt: skip


def cut_down(tokenizer: Path, folder: Path) -> Path:
    """A model folder with the real tokenizer and config, narrow and shallow, randomly initialised."""
    shutil.copytree(tokenizer, folder)
    config = AutoConfig.from_pretrained(folder)
    for name, value in NARROW[tokenizer.name].items():
        setattr(config, name, value)
    config.layer_types = None  # one entry a layer; made anew for the layers that are left
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(type(config).from_dict(config.to_dict())).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("teacher_name", [pytest.param("qwen1.5-1.8b", marks=pytest.mark.slow), "tinyllama-1.1b"])
def test_dolly_from_text_to_student(teacher_name: str, shared_folder: Path, tmp_path: Path) -> None:
    teacher = cut_down(shared_folder / "tokenizers" / teacher_name, tmp_path / "teacher")
    student = cut_down(shared_folder / "tokenizers" / "gpt2", tmp_path / "student")
    lines = (shared_folder / "data" / "dolly" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    long = json.dumps({"prompt": "Say it often.\n", "response": "so it goes " * 1200})  # beyond GPT-2's 1,024 positions
    (tmp_path / "dolly.jsonl").write_text("\n".join([*lines, long]) + "\n", encoding="utf-8")

    out = tmp_path / "shards"
    answer = sra_data("align", "--teacher", teacher, "--student", student, "--data", tmp_path / "dolly.jsonl",
                      "--out", out, "--json")  # fmt: skip
    assert answer.exit_code == 0, answer.error
    aligned = json.loads(answer.output)
    assert aligned["num_examples"] == 41
    (cut,) = [side["cut"] for side in aligned["sides"] if side["side"].startswith("student")]
    assert cut["overlong_truncated"] == 1  # the model's own positions are the limit
    answer = sra_data("cache-teacher", out, "--top-k", 8)
    assert answer.exit_code == 0, answer.error
    answer = sra_train("run", out, "--output-dir", tmp_path / "run", "--max-steps", 2, "--batch-size", 4,
                       "--set", "tracking.plots=false", "--json")  # fmt: skip
    assert answer.exit_code == 0, answer.error

    spans_cover_the_same_text(out, tmp_path / "student")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.config.vocab_size == 50257


def spans_cover_the_same_text(out: Path, student: Path) -> None:
    """On real text: a span's pieces, decoded by the student's own tokenizer, spell the teacher's stretch of text."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    with ShardSet.open(out) as shards:
        own, others = shards.choose_student(), shards.choose_teacher_side()
        pair = shards.pair(student=own, teacher=others)
        folders = (shards.corpus, shards.side(own), shards.side(others), pair)
        for example, student_side, teacher_side, aligned in zip(*(one.read(range(5)) for one in folders), strict=True):
            assert len(aligned.student_spans) > 5
            text = side_text(teacher_side, example)
            for (s_start, s_stop), (t_start, t_stop) in zip(aligned.student_spans, aligned.teacher_spans, strict=True):
                begin = teacher_side.ends[t_start - 1] if t_start else 0
                stretch = text[begin : teacher_side.ends[t_stop - 1]]
                assert tokenizer.decode(student_side.ids[s_start:s_stop]).strip() == stretch.strip()
