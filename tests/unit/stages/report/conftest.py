"""Whole shards with a teacher's pages, and the same before the teacher spoke."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.command_lines import sra_data, write_examples, write_pair
from tests.manifests import change_manifest
from tests.unit.stages.report.reading import NASTY


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 30 examples, one of them with a nasty id, two of them too long."""
    folder = tmp_path_factory.mktemp("report")
    teacher, student = write_pair(folder)
    data = write_examples(folder / "<b>train.jsonl", 27)
    with open(data, "a", encoding="utf-8") as file:
        file.write(json.dumps({"id": NASTY, "prompt": "Say it:\n", "response": "zzzz qqqq xxxx"}) + "\n")
        for number in range(2):
            file.write(json.dumps({"id": f"long-{number}", "prompt": "Say:\n", "response": "word " * 200}) + "\n")
    arguments = ("--teacher", teacher, "--student", student, "--data", data, "--dev-share", 0.2, "--overlong", "skip")
    answer = sra_data("align", *arguments, "--out", folder / "shards")
    assert answer.exit_code == 0, answer.error
    answer = sra_data("cache-teacher", folder / "shards", "--top-k", 8, "--device", "cpu")
    assert answer.exit_code == 0, answer.error
    return folder / "shards"


@pytest.fixture(scope="session")
def early(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same before the teacher spoke."""
    copy = Path(shutil.copytree(shards, tmp_path_factory.mktemp("early") / "shards"))
    shutil.rmtree(copy / "teachers")
    change_manifest(copy, lambda manifest: manifest.pop("teachers"))
    return copy
