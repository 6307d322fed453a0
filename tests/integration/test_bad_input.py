"""Bad input gets one line naming what, where, value and remedy, exit 1, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.integration.command_lines import Answer, sra_data, write_examples, write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("models"))


def refused(answer: Answer, *words: str) -> None:
    """One line that names all of `words`."""
    assert answer.exit_code == 1
    assert "\n" not in answer.error.strip()
    for word in words:
        assert word in answer.error, answer.error


def align(pair: tuple[Path, Path], data: Path, out: Path, *more: object) -> Answer:
    return sra_data("align", "--teacher", pair[0], "--student", pair[1], "--data", data, "--out", out, *more)


ROW = json.dumps({"prompt": "p", "response": "r"})
BAD_FILES = {
    "an empty file": ("", ("is empty",)),
    "invalid JSON": (f"{ROW}\n{{nonsense\n", (":2", "JSON")),
    "missing columns": ('{"a": 1, "b": 2}\n', ("a, b", "--columns")),
    "an empty response": (f'{ROW}\n{{"prompt": "p", "response": ""}}\n', (":2", "response", "empty")),
    "a response of spaces": ('{"prompt": "p", "response": "  \\n"}\n', (":1", "response", "empty")),
    "a wrong type": ('{"prompt": "p", "response": 7}\n', (":1", "response", "7")),
    "equal ids": ('{"id": "a", "prompt": "p", "response": "r"}\n' * 2, ("id", "a")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_and_nothing_is_written(name: str, pair, tmp_path) -> None:
    content, words = BAD_FILES[name]
    data = tmp_path / "bad.jsonl"
    data.write_text(content)
    refused(align(pair, data, tmp_path / "shards"), "bad.jsonl", *words)
    assert not (tmp_path / "shards").exists()


def test_a_missing_file_is_refused(pair, tmp_path) -> None:
    refused(align(pair, tmp_path / "nowhere.jsonl", tmp_path / "shards"), "nowhere.jsonl")
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "./no-such-folder"])
def test_an_unknown_model_is_refused(name: str, pair, tmp_path) -> None:
    data = write_examples(tmp_path / "train.jsonl", 2)
    refused(align((Path(name), pair[1]), data, tmp_path / "shards"), "no-such")
    refused(align((pair[0], Path(name)), data, tmp_path / "shards"), "no-such")
    assert not (tmp_path / "shards").exists()


def test_a_teacher_without_a_usable_tokenizer_is_refused(pair, tmp_path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    shutil.copy(pair[0] / "config.json", teacher)
    data = write_examples(tmp_path / "train.jsonl", 2)
    refused(align((teacher, pair[1]), data, tmp_path / "shards"), str(teacher), "tokenizer")
    assert not (tmp_path / "shards").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(pair, tmp_path) -> None:
    data = write_examples(tmp_path / "train.jsonl", 2)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    refused(align(pair, data, locked / "shards"), "locked", "write")
    assert not list(locked.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(pair, tmp_path) -> None:
    data = write_examples(tmp_path / "train.jsonl", 2)
    (tmp_path / "file").write_text("a file where a folder should be")
    refused(align(pair, data, tmp_path / "file" / "shards"), "file")
    assert (tmp_path / "file").read_text() == "a file where a folder should be"


def test_shards_of_another_corpus_are_refused_and_another_teacher_only_adds(pair, tmp_path) -> None:
    out = tmp_path / "shards"
    assert align(pair, write_examples(tmp_path / "one.jsonl", 3), out).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused(align(pair, write_examples(tmp_path / "two.jsonl", 4), out), "shards", "other inputs")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert align((pair[1], pair[1]), tmp_path / "one.jsonl", out).exit_code == 0
    del before[out / "manifest.json"]
    assert {path: path.read_bytes() for path in before} == before


def test_a_teacher_with_other_weights_does_not_go_on_with_the_pages_of_the_first(pair, tmp_path) -> None:
    from tests.model_zoo import tiny_model

    teacher, out = shutil.copytree(pair[0], tmp_path / "teacher"), tmp_path / "shards"
    assert align((teacher, pair[1]), write_examples(tmp_path / "one.jsonl", 3), out).exit_code == 0
    assert sra_data("cache-teacher", out).exit_code == 0
    before = {path: path.read_bytes() for path in (out / "teachers").rglob("*") if path.is_file()}
    tiny_model("llama", seed=9, vocab_size=403, max_position_embeddings=256).save_pretrained(teacher)
    assert sra_data("cache-teacher", out).exit_code == 0
    assert len(list((out / "teachers").iterdir())) == 2
    assert {path: path.read_bytes() for path in before} == before
    refused(sra_data("cache-teacher", out, "--top-k", 3), "teachers/teacher-", "other inputs", "top k: had 64, got 3")


def test_caching_without_shards_is_refused(tmp_path) -> None:
    refused(sra_data("cache-teacher", tmp_path / "shards"), "shards", "sra-data align")
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--layers", "9"), ("--layers 9", "1 to 3")),
        (("--top-k", "100000"), ("--top-k 100000",)),
        (("--side", "nowhere"), ("no side nowhere", "--side NAME")),
        (("--temperatures", "warm"), ("--temperatures warm",)),
    ],
)
def test_options_that_cannot_be_are_refused(flags: tuple[str, ...], words: tuple[str, ...], pair, tmp_path) -> None:
    out = tmp_path / "shards"
    assert align(pair, write_examples(tmp_path / "one.jsonl", 3), out).exit_code == 0
    refused(sra_data("cache-teacher", out, *flags), *words)
    assert not (out / "teachers").exists()


def test_a_choice_that_there_is_not_is_wrong_usage(tmp_path) -> None:
    answer = sra_data("cache-teacher", tmp_path, "--hidden-dtype", "int3")
    assert answer.exit_code == 2
    assert "int3" in answer.error
    assert "int8" in answer.error
