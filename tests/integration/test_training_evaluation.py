"""Bits per byte and Rouge-L of model folders: the same numbers that training measures, comparable across tokenizers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sra_data.errors import ConfigError, ModelError, SourceError
from sra_data.shards.store import ShardSet
from sra_train.config import GenerationConfig
from sra_train.measure.evaluation import EvaluateOptions, evaluate
from sra_train.measure.generation import rouge_l
from sra_train.record.tracking import read_metrics
from tests.synthetic_shards import SyntheticShards, make_shards, make_student, make_tokenizer
from tests.training_runs import train


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    return make_shards(tmp_path_factory.mktemp("still"))


@pytest.fixture(scope="module")
def development(still, tmp_path_factory) -> Path:
    """The development rows of the shards as the user's text."""
    file = tmp_path_factory.mktemp("data") / "dev.jsonl"
    with ShardSet.open(still.shards) as shards:
        rows = [row for row in shards.corpus.read(range(len(shards.corpus))) if row.split == "dev"]
    lines = []
    for row in rows:
        lines.append(json.dumps({"id": row.id, "prompt": row.prompt, "response": row.response}))
    file.write_text("\n".join(lines) + "\n")
    return file


def test_evaluation_finds_the_bits_that_training_measured(still, development, tmp_path) -> None:
    summary = train(still, tmp_path / "out", checkpoints__export="last")
    found = evaluate(EvaluateOptions(models=(summary.model_folder,), data=str(development), batch_size=2))
    assert found.num_examples == still.num_dev
    assert found.scores[0].bits_per_byte == pytest.approx(summary.metrics["bits_per_byte"], rel=1e-5)


def test_bits_are_those_of_a_slow_loop_over_the_models_own_logits(still, development) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(still.student).eval()
    tokenizer = AutoTokenizer.from_pretrained(still.student)
    bits, num_bytes = 0.0, 0
    for line in development.read_text().splitlines():
        row = json.loads(line)
        encoded = tokenizer(row["prompt"] + row["response"], return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits[0].double(), -1)
        for place, (_, end) in enumerate(encoded["offset_mapping"]):
            if end > len(row["prompt"]):
                bits -= float(log_probs[place - 1, ids[0, place]]) / math.log(2)
        num_bytes += len(row["response"].encode())
    found = evaluate(EvaluateOptions(models=(str(still.student),), data=str(development)))
    assert found.num_bytes == num_bytes
    assert found.scores[0].bits_per_byte == pytest.approx(bits / num_bytes, rel=1e-5)


@pytest.mark.parametrize("begins", [False, True])
def test_bits_and_bytes_of_plain_text_speak_of_the_same_text(tmp_path, begins) -> None:
    """A first token that nothing stands before is as likely as any other id; one behind a beginning token is read."""
    made = make_shards(tmp_path, prompts=False, with_teacher=False)
    folder = with_beginning(made.student, tmp_path / "begins") if begins else made.student
    rows = development_rows(made, tmp_path / "dev.jsonl")
    assert all(row["prompt"] == "" for row in rows)
    num_bytes = sum(len(row["response"].encode()) for row in rows)
    found = evaluate(EvaluateOptions(models=(str(folder),), data=str(tmp_path / "dev.jsonl"), batch_size=3))
    assert found.scores[0].bits == pytest.approx(sum(slow_bits(folder, row["response"]) for row in rows), rel=1e-5)
    assert (found.num_bytes, found.scores[0].unpredicted) == (num_bytes, 0 if begins else len(rows))
    assert ("first tokens have nothing before them" in "\n".join(found.lines())) != begins
    if not begins:
        summary = train(made, tmp_path / "out", method__name="sft", checkpoints__export="last", training__epochs=1)
        again = evaluate(EvaluateOptions(models=(summary.model_folder,), data=str(tmp_path / "dev.jsonl")))
        assert again.scores[0].bits_per_byte == pytest.approx(summary.metrics["bits_per_byte"], rel=1e-5)


def development_rows(made: SyntheticShards, file: Path) -> list[dict[str, str]]:
    """The development rows of shards, written as the user's text too."""
    with ShardSet.open(made.shards) as shards:
        rows = [row for row in shards.corpus.read(range(len(shards.corpus))) if row.split == "dev"]
    found = [{"id": row.id, "prompt": row.prompt, "response": row.response} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return found


def with_beginning(student: Path, folder: Path) -> Path:
    """The same model, its tokenizer putting a beginning token before every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    end = tokenizer.eos_token
    special = [(end, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{end} $A", special_tokens=special)
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(student).save_pretrained(folder)
    return folder


def slow_bits(folder: Path, text: str) -> float:
    """Of a whole text, token by token; the first token of all, if it is text, costs log2 of the vocabulary."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = AutoTokenizer.from_pretrained(folder)(text, return_special_tokens_mask=True)
    ids, bits = encoded["input_ids"], 0.0
    for place, is_special in enumerate(encoded["special_tokens_mask"]):
        if is_special:
            continue
        if place == 0:
            bits += math.log2(model.config.vocab_size)
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
        bits -= float(torch.log_softmax(logits, -1)[ids[place]]) / math.log(2)
    return bits


def test_examples_beyond_one_models_context_are_left_out_for_all(still, development, tmp_path) -> None:
    short = tmp_path / "short"
    tokenizer = make_tokenizer(["a few words"], 270, short)  # cuts into many more tokens
    make_student(short, tokenizer, dropout=0.0)
    config = json.loads((short / "config.json").read_text())
    assert config["n_positions"] == 128
    known = json.loads(development.read_text().splitlines()[0])["response"]  # the student has long tokens for it
    long_row = {"id": "long", "prompt": "p", "response": (known * 200)[:135]}
    long_rows = development.read_text() + json.dumps(long_row) + "\n"
    data = tmp_path / "data.jsonl"
    data.write_text(long_rows)
    models = (str(still.student), str(short))
    found = evaluate(EvaluateOptions(models=models, data=str(data)))
    assert found.num_examples == still.num_dev
    assert sum(found.left_out.values()) == 1
    alone = evaluate(EvaluateOptions(models=models[:1], data=str(data)))
    assert alone.num_examples == still.num_dev + 1
    assert found.scores[0].tokens < found.scores[1].tokens


def test_rouge_is_measured_over_the_seeds_and_repeats(still, development) -> None:
    protocol = GenerationConfig(seeds=(1, 2, 3), max_new_tokens=8, batch_size=2)
    options = EvaluateOptions(models=(str(still.student),), data=str(development), generation=protocol)
    first, again = (evaluate(options).scores[0].rouge_l for _ in range(2))
    assert first == again
    assert len(first.per_seed) == 3
    assert first.num_examples == still.num_dev
    assert first.mean == pytest.approx(sum(first.per_seed) / 3)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    # reference a b c d, answer a c d x y: LCS a c d = 3; P 3/5, R 3/4, F = 2/3
    found = rouge_l(references=["alpha beta gamma delta"], answers=["alpha gamma delta omega sigma"])
    assert found == pytest.approx([100 * 2 / 3])
    assert rouge_l(references=["running dogs"], answers=["runs dog"]) == pytest.approx([100.0])  # stemmed


def test_generation_while_training_picks_the_best_by_rouge(still, development, tmp_path) -> None:
    generation = {"sets": {"dev": str(development)}, "seeds": [1], "max_new_tokens": 6}
    summary = train(still, tmp_path / "out", evaluation__generation=generation, evaluation__metric="rouge_l")
    assert summary.metrics["rouge_l"] == summary.metrics["rouge_l.dev"]
    with pytest.raises(ConfigError, match="nothing is generated"):
        train(still, tmp_path / "refused", evaluation__metric="rouge_l")


def test_an_evaluation_without_answers_does_not_judge_by_them(still, development, tmp_path) -> None:
    generation = {"sets": {"dev": str(development)}, "seeds": [1], "max_new_tokens": 4, "max_examples": 2}
    summary = train(
        still, tmp_path / "out", training__epochs=2, evaluation__every_steps=2, evaluation__patience=2,
        evaluation__generation=generation, evaluation__metric="rouge_l",
    )  # fmt: skip
    records = [one for one in read_metrics(tmp_path / "out" / "metrics.jsonl") if one["kind"] == "evaluation"]
    assert [record["step"] for record in records] == [2, 4, 6, 8, 10]
    assert [record["step"] for record in records if "rouge_l" in record] == [10]  # the end of the run
    assert summary.steps == summary.exported_step == summary.total_steps == 10  # and nothing before it was worse


def test_what_cannot_be_evaluated_is_refused(still, tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "p", "response": " abc" * 400}) + "\n")
    with pytest.raises(SourceError, match="no example fits all models"):
        evaluate(EvaluateOptions(models=(str(still.student),), data=str(data)))
    with pytest.raises(SourceError, match="no examples in the split dev"):
        evaluate(EvaluateOptions(models=(str(still.student),), data=str(data), split="dev"))
    with pytest.raises(ConfigError, match="no model given"):
        evaluate(EvaluateOptions(models=(), data=str(data)))
    for name in ("batch_size", "max_examples", "max_length"):
        option = name.replace("_", "-")
        with pytest.raises(ConfigError, match=f"--{option} -3: not a positive number"):
            evaluate(EvaluateOptions(models=(str(still.student),), data=str(data), **{name: -3}))
    for device in ("nowhere", "cuda:99"):
        with pytest.raises(ConfigError, match=f"--device {device}: cannot be used"):
            evaluate(EvaluateOptions(models=(str(still.student),), data=str(data), device=device))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in still.student.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    data.write_text(json.dumps({"prompt": "p", "response": " abc"}) + "\n")
    with pytest.raises(ModelError, match="no safetensors weights"):
        evaluate(EvaluateOptions(models=(str(bare),), data=str(data)))
