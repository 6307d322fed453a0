"""The three commands as a user runs them, on a small pair of models with different tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sra_data.shards.schema import response_positions
from sra_data.shards.store import Manifest, ShardSet, record
from tests.integration.command_lines import sra_data, sra_train, write_examples, write_pair

RUN = ("--epochs", 2, "--batch-size", 4, "--set", "tracking.plots=false")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def shards(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 24 examples, teacher's pages in float32, four of them for development."""
    folder = tmp_path_factory.mktemp("data")
    data = write_examples(folder / "train.jsonl", 20)
    dev = write_examples(folder / "dev.jsonl", 4, first=20)
    out = folder / "shards"
    teacher, student = pair
    answer = sra_data(
        "align", "--teacher", teacher, "--student", student, "--data", data, "--dev-data", dev, "--out", out
    )
    assert answer.exit_code == 0, answer.error
    answer = sra_data("cache-teacher", out, "--hidden-dtype", "fp32", "--top-k", 8)
    assert answer.exit_code == 0, answer.error
    return out


def test_a_student_is_trained_after_the_teacher_is_deleted(pair, tmp_path) -> None:
    teacher, student = (shutil.copytree(folder, tmp_path / folder.name) for folder in pair)
    data = write_examples(tmp_path / "train.jsonl", 12)
    out = tmp_path / "shards"
    arguments = ("--teacher", teacher, "--student", student, "--data", data, "--out", out, "--dev-share", 0.2)
    assert sra_data("align", *arguments).exit_code == 0
    assert sra_data("cache-teacher", out).exit_code == 0
    shutil.rmtree(teacher)
    answer = sra_train("run", out, "--output-dir", tmp_path / "run", *RUN, "--json")
    assert answer.exit_code == 0, answer.error
    assert json.loads(answer.output)["steps"] > 0

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ids = tokenizer("Say number 3:\n", return_tensors="pt")["input_ids"]
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert said.shape[1] == ids.shape[1] + 4


def test_training_fails_in_one_line_without_the_teachers_pages(shards, tmp_path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    shutil.rmtree(copy / "teachers")
    answer = sra_train("run", copy, "--output-dir", tmp_path / "run", *RUN)
    assert answer.exit_code == 1
    assert "teacher" in answer.error
    assert "sra-data cache-teacher" in answer.error
    assert "\n" not in answer.error
    assert not (tmp_path / "run").exists()


def test_training_refuses_an_unfinished_cache(shards, tmp_path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    (teacher,) = Manifest.load(copy).names("teachers")
    record(copy, f"teachers/{teacher}", root=None)
    answer = sra_train("run", copy, "--output-dir", tmp_path / "run", *RUN)
    assert answer.exit_code == 1
    assert "unfinished" in answer.error
    assert "sra-data cache-teacher" in answer.error


def test_the_first_row_holds_the_distribution_over_the_first_response_token(shards, pair) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(pair[0]).eval()
    with ShardSet.open(shards) as opened:
        name = opened.choose_teacher()
        sides = opened.side(opened.side_of_teacher(name)).read(range(3))
        for side, said in zip(sides, opened.teacher(name).read(range(3)), strict=True):
            first = int(side.response_spans[0, 0])
            positions = response_positions(side.response_spans)
            assert positions[0] == first - 1
            with torch.no_grad():
                logits = teacher(torch.from_numpy(side.ids[None].astype(np.int64))).logits[0]
            expected = logits.log_softmax(-1)[first - 1, side.ids[first]]
            assert said.next_log_prob[0] == pytest.approx(float(expected), abs=1e-5)
            # The text of the token that row r-1 predicts begins where the response begins.
            assert side.ends[first - 1] <= side.response_ranges[0, 0] < side.ends[first]


def test_a_second_run_of_each_command_does_nothing_again(shards, pair, tmp_path) -> None:
    before = {path: path.read_bytes() for path in sorted(shards.rglob("*")) if path.is_file()}
    again = sra_data("cache-teacher", shards, "--hidden-dtype", "fp32", "--top-k", 8, "--json")
    assert json.loads(again.output)["num_done"] == 0
    assert {path: path.read_bytes() for path in sorted(shards.rglob("*")) if path.is_file()} == before


def test_verify_finds_nothing_wrong_and_then_a_flipped_bit(shards, tmp_path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    assert sra_data("verify", copy).exit_code == 0
    (part,) = copy.glob("teachers/*/part-00000.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 4
    part.write_bytes(content)
    answer = sra_data("verify", copy)
    assert answer.exit_code == 1
    assert "part-00000" in answer.error


def test_evaluate_judges_models_with_different_tokenizers_on_the_same_bytes(pair, tmp_path) -> None:
    data = write_examples(tmp_path / "test.jsonl", 6)
    answer = sra_train("evaluate", *pair, "--data", data, "--json")
    found = json.loads(answer.output)
    assert found["num_examples"] == 6
    assert [model["model"] for model in found["models"]] == [str(folder) for folder in pair]
    # Untrained models know nothing: about the entropy of their vocabulary per token, whatever the cut.
    assert all(1 < model["bits_per_byte"] < 20 for model in found["models"])


def test_plain_fine_tuning_needs_no_cache(pair, tmp_path) -> None:
    data = write_examples(tmp_path / "train.jsonl", 8)
    out = tmp_path / "shards"
    assert sra_data("align", "--teacher", pair[0], "--student", pair[1], "--data", data, "--out", out).exit_code == 0
    answer = sra_train("run", out, "--method", "sft", "--output-dir", tmp_path / "run", *RUN, "--max-steps", 2)
    assert answer.exit_code == 0, answer.error


def test_the_three_lines_work_as_they_stand_in_an_empty_folder(pair, tmp_path, monkeypatch) -> None:
    """Without --data, --out or --output-dir: the built-in corpus, cut to its first examples to be quick."""
    from sra_data.corpus import builtin

    records = tuple(builtin.builtin_records()[:40])
    monkeypatch.setattr(builtin, "_records", lambda folder: records)
    monkeypatch.chdir(tmp_path)
    assert sra_data("align", "--teacher", pair[0], "--student", pair[1], "--max-length", 200).exit_code == 0
    assert sra_data("cache-teacher").exit_code == 0
    answer = sra_train("run", "shards/", "--max-steps", 2, "--set", "tracking.plots=false")
    assert answer.exit_code == 0, answer.error
    assert list(tmp_path.glob("runs/*/model/config.json"))
