"""Several teachers of one corpus, as a user makes their pages: beside each other, each from its tokenizer's side."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from sra_data.shards.store import Manifest, ShardSet
from tests.integration.command_lines import Answer, sra_data, write_examples, write_pair
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_sentencepiece_bpe

OPTIONS = ("--device", "cpu", "--top-k", 8)


def save_model(folder: Path, tokenizer_of: Path, *, seed: int, positions: int = 256, width: int = 32) -> Path:
    """A Llama of its own with the tokenizer of another."""
    shutil.copytree(tokenizer_of, folder)
    vocabulary = json.loads((tokenizer_of / "config.json").read_text())["vocab_size"]
    sizes = {"vocab_size": vocabulary, "max_position_embeddings": positions, "hidden_size": width}
    tiny_model("llama", seed=seed, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Teacher, student, a larger teacher with the teacher's tokenizer, and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    teacher, student = write_pair(folder)
    larger = save_model(folder / "larger", teacher, seed=3, width=64)
    stranger = folder / "stranger"
    tokenizer = train_sentencepiece_bpe()
    tiny_model("llama", seed=4, vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(stranger)
    tokenizer.save_pretrained(stranger)
    return {"teacher": teacher, "student": student, "larger": larger, "stranger": stranger}


@pytest.fixture(scope="module")
def aligned(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data = write_examples(folder / "train.jsonl", 12)
    said(align(models, "teacher", data=data, out=folder / "shards"))
    return folder / "shards"


@pytest.fixture
def shards(aligned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(aligned, tmp_path / "shards"))


def align(models: dict[str, Path], *teachers: str, data: Path, out: Path, student: str = "student") -> Answer:
    asked = [word for teacher in teachers for word in ("--teacher", models[teacher])]
    return sra_data("align", *asked, "--student", models[student], "--data", data, "--out", out)


def said(answer: Answer) -> str:
    assert answer.exit_code == 0, answer.error
    return answer.output


def hashes(shards: Path) -> dict[str, str]:
    files = [path for path in shards.rglob("*") if path.is_file()]
    return {str(path.relative_to(shards)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_second_teacher_with_a_known_tokenizer_adds_only_its_pages(shards: Path, models: dict[str, Path]) -> None:
    said(sra_data("cache-teacher", shards, *OPTIONS))
    before, manifest = hashes(shards), Manifest.load(shards).content
    estimated = json.loads(said(sra_data("estimate", shards, "--teacher", models["larger"], "--no-time", "--json")))
    assert hashes(shards) == before
    found = json.loads(said(sra_data("cache-teacher", shards, "--teacher", models["larger"], *OPTIONS, "--json")))
    after, grown = hashes(shards), Manifest.load(shards).content
    assert (found["side"], found["num_positions"]) == (estimated["side"], estimated["num_positions"])
    assert {name for name in before if after[name] != before[name]} == {"manifest.json"}
    assert all(name.startswith(f"{found['section']}/") for name in after.keys() - before.keys())
    del grown["teachers"][found["section"].removeprefix("teachers/")]
    assert grown == manifest
    said(sra_data("verify", shards))
    assert "choose one with --teacher NAME" in sra_data("verify", shards, "--deep").error
    said(sra_data("verify", shards, "--deep", "--teacher", models["larger"], "--sample", 3))


def test_a_teacher_of_another_tokenizer_needs_a_side_and_align_adds_it(
    shards: Path, aligned: Path, models: dict[str, Path]
) -> None:
    said(sra_data("cache-teacher", shards, *OPTIONS))
    refused = sra_data("cache-teacher", shards, "--teacher", models["stranger"], *OPTIONS)
    assert refused.exit_code == 1
    assert f"`sra-data align --teacher {models['stranger']} --student {models['student']}" in refused.error
    before = hashes(shards)
    said(align(models, "stranger", data=aligned.parent / "train.jsonl", out=shards))
    assert {name for name in before if hashes(shards)[name] != before[name]} == {"manifest.json"}
    assert "2 teachers were aligned" in sra_data("cache-teacher", shards, *OPTIONS).error
    said(sra_data("cache-teacher", shards, "--teacher", models["stranger"], *OPTIONS))
    said(sra_data("verify", shards))
    with ShardSet.open(shards) as opened:
        sides = {name: opened.side_of_teacher(name) for name in opened.manifest.names("teachers")}
        assert len(set(sides.values())) == 2
        for name, side in sides.items():
            assert opened.teacher(name).index.num_positions.tolist() == opened.side(side).index.num_positions.tolist()


def test_teachers_aligned_together_are_asked_for_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    data, out = write_examples(tmp_path / "train.jsonl", 6), tmp_path / "shards"
    said(align(models, "teacher", "stranger", data=data, out=out))
    answer = sra_data("cache-teacher", out, *OPTIONS)
    assert answer.exit_code == 1
    assert (
        f"2 teachers were aligned ({models['teacher']}, {models['stranger']}); choose one with --teacher"
        in answer.error
    )
    for name in ("teacher", "stranger"):
        said(sra_data("cache-teacher", out, "--teacher", models[name], *OPTIONS))
    said(sra_data("verify", out))


def test_a_student_of_the_teachers_tokenizer_with_fewer_positions_has_a_side_of_its_own(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Then two sides are of the teacher's tokenizer: it takes the one it was aligned with, and nobody has to ask."""
    small = save_model(tmp_path / "small", models["teacher"], seed=5, positions=24)
    data, out = write_examples(tmp_path / "train.jsonl", 6), tmp_path / "shards"
    said(align({**models, "small": small}, "teacher", student="small", data=data, out=out))
    found = json.loads(said(sra_data("cache-teacher", out, *OPTIONS, "--json")))
    with ShardSet.open(out) as opened:
        (pair,) = opened.manifest.pairs
        assert pair["teacher_side"] != pair["student_side"]
        assert found["side"] == pair["teacher_side"]
    # As a teacher the small one reads its own side: the larger one's rows are too long for it.
    asked = sra_data("cache-teacher", out, "--teacher", small, *OPTIONS)
    assert "choose one with --side NAME" in asked.error
    said(sra_data("cache-teacher", out, "--teacher", small, "--side", pair["student_side"], *OPTIONS))
    refused = sra_data("cache-teacher", out, "--teacher", small, "--side", pair["teacher_side"], *OPTIONS)
    assert f"teacher {small} reads 24" in refused.error
