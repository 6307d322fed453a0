"""The five published pairs: settings are the paper's, and the script carries a small pair of each family through."""

from __future__ import annotations

import importlib.util
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from transformers import AutoConfig

from sra_data.cli import app as data_app
from sra_data.corpus.examples import Row
from sra_train.cli import app as train_app
from sra_train.config import GenerationConfig, StudentConfig, flatten
from sra_train.student import add_lora, num_parameters
from tests.integration.command_lines import SENTENCES, sra_data, sra_train, write_examples
from tests.integration.scripts import Ended, run_script, run_script_here
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_byte_level_bpe, train_sentencepiece_bpe

REPOSITORY = Path(__file__).resolve().parents[2]
PUBLISHED = REPOSITORY / "pipelines" / "published"

# Hidden size, layers, vocabulary.
QWEN_1_8B = (2048, 24, 151_936)
QWEN_7B = (3584, 28, 152_064)
MISTRAL_7B = (4096, 32, 32_000)


@dataclass(frozen=True)
class Pair:
    """What the paper says of a pair (arXiv 2605.01205), and the families of its models."""

    name: str
    teacher: str
    student: str
    families: tuple[str, str]
    reported: tuple[float, float]  # mean Rouge-L of SRA and DSKD
    teacher_sizes: tuple[int, int, int]
    lora_targets: tuple[str, ...] = ()  # none: the student is fine-tuned in full

    @property
    def has_lora(self) -> bool:
        return bool(self.lora_targets)

    def recipe(self) -> dict[str, Any]:
        """The student's published settings, as flat names."""
        adapted = {"lora.r": 256, "lora.alpha": 8, "lora.dropout": 0.1} if self.has_lora else {"lora": None}
        return {
            "training.learning_rate": 1e-3 if self.has_lora else 5e-4,
            "training.projector_learning_rate": 5e-4,
            "training.min_learning_rate": 5e-6,
            "training.schedule": "cosine",
            "training.warmup": 0.1,
            "training.weight_decay": 0.01,
            "training.batch_size": 16,
            "training.epochs": 10 if self.has_lora else 20,
            **{f"student.{name}": value for name, value in adapted.items()},
        }

    def sra(self) -> dict[str, Any]:
        """The published objective."""
        return {
            "method.name": "sra",
            "method.alpha": 0.6 if self.has_lora else 0.5,
            "method.lambda_geo": 50.0,
            "method.temperature": 2.0,
            "method.pooling": "attention",
            "method.kd_reduction": "sum",
            **{f"method.{term}": True for term in ("cos", "geo", "kd")},
        }


PAIRS = (
    Pair(
        "qwen1.5-1.8b_to_gpt2-120m", "Qwen/Qwen1.5-1.8B", "openai-community/gpt2", ("qwen2", "gpt2"), (17.97, 15.35),
        QWEN_1_8B,
    ),
    Pair(
        "qwen1.5-1.8b_to_gpt2-340m", "Qwen/Qwen1.5-1.8B", "openai-community/gpt2-medium", ("qwen2", "gpt2"),
        (18.10, 15.57), QWEN_1_8B,
    ),
    Pair(
        "qwen2.5-7b_to_gpt2-1.5b", "Qwen/Qwen2.5-7B", "openai-community/gpt2-xl", ("qwen2", "gpt2"), (20.99, 19.27),
        QWEN_7B, ("c_attn",),
    ),
    Pair(
        "qwen2.5-7b_to_opt-2.7b", "Qwen/Qwen2.5-7B", "facebook/opt-2.7b", ("qwen2", "opt"), (20.92, 20.15),
        QWEN_7B, ("q_proj", "v_proj"),
    ),
    Pair(
        "mistral-7b_to_tinyllama-1.1b", "mistralai/Mistral-7B-v0.1",
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", ("mistral", "llama"), (22.52, 21.33),
        MISTRAL_7B, ("q_proj", "v_proj"),
    ),
)  # fmt: skip
QUICK = PAIRS[-1]
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


# ------------------------------------------------------------------------------------------------ what would be run


def script(pair: str) -> list[str]:
    return ["bash", str(PUBLISHED / "run.sh"), pair]


def planned(pair: Pair, out: Path, **environment: object) -> list[list[str]]:
    """The commands the script would run, each as words."""
    said = run_script(script(pair.name), {"OUT": out, "PLAN": 1} | environment)
    assert said.exit_code == 0, said.error
    return [shlex.split(line.removeprefix("$ ")) for line in said.error.splitlines()]


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a planned command, its YAML read, as the command would see them."""
    program, name, *arguments = words
    group: Any = typer.main.get_command({"sra-data": data_app, "sra-train": train_app}[program])
    return dict(group.commands[name].make_context(name, arguments).params)


def commands(plan: list[list[str]], name: str) -> list[list[str]]:
    return [words for words in plan if words[1] == name]


def run_yaml(words: list[str]) -> dict[str, Any]:
    """What a planned `sra-train run` resolves to."""
    answer = sra_train(*words[1:], "--print-config")
    assert answer.exit_code == 0, answer.error
    return dict(yaml.safe_load(answer.output))


def run_config(words: list[str]) -> dict[str, Any]:
    """The same as flat names."""
    return flatten(run_yaml(words))


def chosen(config: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    return {name: config.get(name, "absent") for name in expected}


def test_the_table_of_pairs_is_the_papers() -> None:
    lines = (PUBLISHED / "pairs.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert [(name, teacher, student.partition("@")[0]) for name, teacher, student, *_ in rows] == [
        (pair.name, pair.teacher, pair.student) for pair in PAIRS
    ]
    assert [(float(row[-2]), float(row[-1])) for row in rows] == [pair.reported for pair in PAIRS]


@each_pair
def test_the_students_settings_are_the_published_ones(pair: Pair, tmp_path: Path) -> None:
    teacher, sft, sra = (run_config(words) for words in commands(planned(pair, tmp_path), "run"))
    expected = pair.recipe()
    assert chosen(sft, expected) == expected
    assert sft["method.name"] == "sft"
    assert chosen(sra, expected | pair.sra()) == expected | pair.sra()
    assert {name for name in sra if sra[name] != sft.get(name)} <= {"output_dir", *(n for n in sra if "method" in n)}
    assert teacher["method.name"] == "sft"


@each_pair
def test_a_teacher_of_7_b_is_adapted_and_a_smaller_one_trained_in_full(pair: Pair, tmp_path: Path) -> None:
    teacher = run_config(commands(planned(pair, tmp_path), "run")[0])
    is_large = "7B" in pair.teacher
    assert teacher["student.dtype"] == ("bfloat16" if is_large else "float32")
    assert teacher.get("student.lora.r") == (256 if is_large else None)
    assert teacher["training.gradient_checkpointing"]


@each_pair
def test_text_pages_and_evaluation_are_as_published(pair: Pair, tmp_path: Path) -> None:
    plan = planned(pair, tmp_path)
    own, both = (parsed(words) for words in commands(plan, "align"))
    assert list(own["teacher"]) == list(own["student"]) == [pair.teacher]
    assert [name.partition("@")[0] for name in both["student"]] == [pair.student]
    assert list(both["teacher"]) == [str(tmp_path / "teacher" / "model")]
    assert all((options["max_length"], options["overlong"]) == (320, "truncate-prompt") for options in (own, both))
    for name in ("estimate", "cache-teacher"):
        options = parsed(*commands(plan, name))
        assert (options["layers"], options["hidden_dtype"], options["top_k"]) == ("last", "bf16", 64)
    judged = parsed(*commands(plan, "evaluate"))
    assert list(judged["models"]) == [str(tmp_path / name / "model") for name in ("teacher", "sft", "sra")]
    assert (judged["rouge"], judged["seeds"], judged["max_new_tokens"]) == (True, "10,20,30,40,50", 512)
    protocol = GenerationConfig()
    assert (protocol.temperature, protocol.top_p, protocol.max_prompt_tokens) == (1.0, 1.0, 256)


@each_pair
def test_the_adapters_sit_on_query_and_value_of_the_students_family(pair: Pair, tmp_path: Path) -> None:
    words = commands(planned(pair, tmp_path), "run")[-1]
    lora = StudentConfig.model_validate({"lora": run_yaml(words)["student"]["lora"]}).lora
    assert (lora is not None) == pair.has_lora
    if lora is None:
        return
    model: Any = add_lora(tiny_model(pair.families[1]), lora)
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == set(pair.lora_targets)
    every, trained = num_parameters(model)
    assert 0 < trained < every


def test_an_unknown_pair_or_data_without_test_sets_is_refused_in_one_line(tmp_path: Path) -> None:
    plan = {"OUT": tmp_path / "out", "PLAN": 1}
    said = run_script(script("gpt5_to_abacus"), plan)
    assert (said.exit_code, said.error.count("\n")) == (2, 1)
    assert all(pair.name in said.error for pair in PAIRS)
    said = run_script(script(QUICK.name), plan | {"DATA": "train.jsonl"})
    assert (said.exit_code, said.error.count("\n")) == (2, 1)
    assert "SETS" in said.error
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- small pairs in their place


def tokenizer_of(family: str) -> Any:
    """A small tokenizer of the family's kind."""
    if family == "qwen2":
        return train_byte_level_bpe(SENTENCES, 400, nfc=True)
    if family in ("gpt2", "opt"):
        return train_byte_level_bpe(SENTENCES, 360)
    return train_sentencepiece_bpe(SENTENCES, 600 if family == "mistral" else 520)


def write_small(family: str, folder: Path, *, seed: int) -> Path:
    """A small model of the family with its tokenizer."""
    tokenizer = tokenizer_of(family)
    changes = {"n_positions" if family == "gpt2" else "max_position_embeddings": 512}
    if family == "mistral":
        changes["sliding_window"] = 512
    tiny_model(family, seed=seed, vocab_size=len(tokenizer) + 3, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def material(pair: Pair, folder: Path) -> dict[str, object]:
    """Models, text and limits of a dry run, as the script's environment."""
    return {
        "TEACHER": write_small(pair.families[0], folder / "small-teacher", seed=1),
        "STUDENT": write_small(pair.families[1], folder / "small-student", seed=2),
        "DATA": write_examples(folder / "train.jsonl", 20),
        "DEV_DATA": write_examples(folder / "dev.jsonl", 4, first=20),
        "SETS": " ".join(
            f"{name}={write_examples(folder / f'{name}.jsonl', 3, first=first)}"
            for name, first in (("one", 24), ("two", 27))
        ),
        "MAX_STEPS": 2,
        "MAX_EXAMPLES": 2,
        "MAX_NEW_TOKENS": 4,
        "SEEDS": "10,20",
        "RUN_OPTIONS": "--set tracking.plots=false",
    }


@each_pair
def test_the_cost_is_estimated_from_the_teachers_configuration(pair: Pair, tmp_path: Path) -> None:
    environment = material(pair, tmp_path)
    teacher = tmp_path / "teacher" / "model"  # where the script finds what it trained: here sizes without weights
    hidden_size, num_layers, vocab_size = pair.teacher_sizes
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": num_layers, "vocab_size": vocab_size}
    AutoConfig.for_model(pair.families[0], **sizes).save_pretrained(teacher)
    tokenizer_of(pair.families[0]).save_pretrained(teacher)
    plan = planned(pair, tmp_path, **environment)
    answer = sra_data(*commands(plan, "align")[1][1:])
    assert answer.exit_code == 0, answer.error
    answer = sra_data(*commands(plan, "estimate")[0][1:], "--no-time", "--json")
    assert answer.exit_code == 0, answer.error
    said = json.loads(answer.output)
    assert (said["hidden_size"], said["num_layers"], said["vocabulary_size"]) == pair.teacher_sizes
    assert said["epochs"] == pair.recipe()["training.epochs"] == said["online_passes"]
    ids = 64 * (vocab_size - 1).bit_length() / 8
    beside = said["bytes_per_position"] - 2 * hidden_size - ids
    assert 2 * 64 <= beside <= 2 * 64 + 24  # log-probabilities, tails, attention, the next token's


@each_pair
def test_a_small_pair_of_the_families_comes_through_to_the_table(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "commands").mkdir()
    out = tmp_path / "out"
    said = run_script_here(script(pair.name), material(pair, tmp_path) | {"OUT": out}, tmp_path / "commands")
    check_dry_run(pair, out, said)


def check_dry_run(pair: Pair, out: Path, ended: Ended) -> None:
    """Whether everything is there, and the settings still the published ones."""
    assert ended.exit_code == 0, ended.error[-3000:]
    table = (out / "table.txt").read_text(encoding="utf-8")
    assert ended.output.endswith(table)
    head, mean = (line.split("  ") for line in table.splitlines() if "DSKD" in line or "mean of the sets" in line)
    assert [cell.strip() for cell in head if cell.strip()] == ["teacher", "SFT", "SRA", "SRA, paper", "DSKD, paper"]
    assert [float(cell) for cell in [cell.strip() for cell in mean if cell.strip()][-2:]] == list(pair.reported)
    for name in ("one", "two"):
        said = json.loads((out / "evaluation" / f"{name}.json").read_text(encoding="utf-8"))
        assert said["num_examples"] == 2
        for model in said["models"]:
            assert f"{model['bits_per_byte']:.4f}" in table
            assert len(model["rouge_l"]["per_seed"]) == 2
    assert "cache-teacher takes about" in (out / "estimate.txt").read_text(encoding="utf-8")
    for run in ("teacher", "sft", "sra"):
        steps = [json.loads(line) for line in (out / run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in steps if row["kind"] == "step"] == [1, 2]
    expected = pair.recipe() | pair.sra()
    assert chosen(flatten(yaml.safe_load((out / "sra" / "config.yaml").read_text())), expected) == expected


@pytest.mark.slow
def test_a_second_start_does_nothing_again_and_prints_the_same_table(tmp_path: Path) -> None:
    """With the installed commands, each a process of its own."""
    out = tmp_path / "out"
    environment = material(QUICK, tmp_path) | {"OUT": out, "PYTHONPATH": REPOSITORY}
    check_dry_run(QUICK, out, run_script(script(QUICK.name), environment))
    kept = [*out.glob("evaluation/*"), *out.glob("shards/teachers/*/*"), out / "estimate.txt"]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept}
    metrics = {path: path.read_bytes() for path in out.glob("*/metrics.jsonl")}
    assert (len(before) > 5, len(metrics)) == (True, 3)
    table = (out / "table.txt").read_text(encoding="utf-8")
    said = run_script(script(QUICK.name), environment)
    assert said.exit_code == 0, said.error[-3000:]
    assert said.output.endswith(table)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path: path.read_bytes() for path in metrics} == metrics


# ------------------------------------------------------------------------------------------------ its two small files


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"published_{name}", PUBLISHED / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_prompt_is_cut_into_two_splits_and_the_order_of_rows_does_not_matter() -> None:
    cut = loaded("cut").cut
    rows = [Row(str(n), f"row {n}", f"prompt {n // 3 if n < 30 else n}", "answer") for n in range(200)]
    splits = cut(rows, num_test=20, num_dev=31)
    assert (splits.count("test"), splits.count("dev"), splits.count("train")) == (20, 31, 149)
    of_prompt = {(row.prompt, split) for row, split in zip(rows, splits, strict=True)}
    assert len(of_prompt) == len({row.prompt for row in rows})
    assert cut(rows[::-1], num_test=20, num_dev=31) == splits[::-1]


def test_the_table_averages_sets_seed_by_seed() -> None:
    def said(bits: float, *per_seed: float) -> dict[str, Any]:
        model = {"bits_per_byte": bits, "rouge_l": {"per_seed": list(per_seed), "num_examples": 5}}
        return {"num_examples": 5, "models": [model] * 3}

    lines = loaded("table").table(QUICK.name, {"a": said(1.5, 10, 20), "b": said(2.5, 30, 20)})
    mean = next(line for line in lines if line.startswith("Rouge-L, mean"))
    assert mean.split() == ["Rouge-L,", "mean", "of", "the", "sets", *["20.00", "±", "0.00"] * 3, "22.52", "21.33"]
    assert sum("1.5000" in line or "2.5000" in line for line in lines) == 2
    assert max(map(len, lines)) <= 120
