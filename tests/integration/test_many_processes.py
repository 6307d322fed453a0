"""Commands started at once on one folder: all end well, with the bytes of one; no unit of a teacher is made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sra_data.shards.manifest import Manifest, Plan, Receipt
from tests.integration.command_lines import sra_data, write_pair, write_six_units

CALL = "import sys; from sra_data.cli import main; sys.exit(main())"


def start(*arguments: object) -> subprocess.Popen[str]:
    """`sra-data`, in a process of its own."""
    words = [sys.executable, "-c", CALL, *(str(argument) for argument in arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_once(commands: Sequence[Sequence[object]]) -> list[dict]:
    """Start all of them and wait; what each printed as JSON."""
    running = [start(*command, "--json") for command in commands]
    ended = [process.communicate(timeout=600) for process in running]
    assert [(process.returncode, errors) for process, (_, errors) in zip(running, ended, strict=True)] == [
        (0, "") for _ in running
    ]
    return [json.loads(output) for output, _ in ended]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, their corpus of many units, and the shards that one process makes."""
    folder = tmp_path_factory.mktemp("many")
    write_pair(folder)
    write_six_units(folder / "data.jsonl")
    return folder


def align(place: Path, out: Path, *more: object) -> list[object]:
    models = ("--teacher", place / "teacher", "--student", place / "student")
    return ["align", *models, "--data", place / "data.jsonl", "--out", out, "--overlong", "truncate", *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_aligns_and_teachers_at_once_leave_the_folder_of_one(place: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert sra_data(*align(place, one)).exit_code == 0
    at_once([align(place, many) for _ in range(3)])
    assert contents(many) == contents(one)

    cache = ("cache-teacher", "--teacher", place / "teacher", "--top-k", 3, "--device", "cpu")
    assert sra_data(*cache, one).exit_code == 0
    said = at_once([[*cache, many] for _ in range(3)])
    made = [path.relative_to(one) for path in one.rglob("teachers/*/part-*.parquet")]
    assert sum(summary["num_done"] for summary in said) == len(made) == said[0]["num_units"]
    assert {summary["root"] for summary in said} == {Manifest.load(one).sealed(str(made[0].parent))["root"]}
    for path in made:
        assert (many / path).read_bytes() == (one / path).read_bytes()
    assert not list(many.rglob("*.tmp"))
    assert sra_data("verify", many).exit_code == 0


@pytest.mark.slow  # the test above starts as many, of both commands
def test_an_array_of_jobs_started_at_once_ends_sealed(place: Path, tmp_path: Path) -> None:
    shards = tmp_path / "array"
    num_units = 6
    at_once([align(place, shards, "--units", "0:1"), align(place, shards, "--units", f"1:{num_units}")])
    assert len(Plan.load(shards / "corpus").units) == num_units
    manifest = Manifest.load(shards)
    assert all(manifest.sealed(section)["root"] for section in manifest.sections)
    cache = ("cache-teacher", shards, "--teacher", place / "teacher", "--top-k", 3, "--device", "cpu", "--units")
    said = at_once([[*cache, "0:1"], [*cache, f"1:{num_units}"]])
    assert [summary["num_done"] for summary in said] == [1, num_units - 1]
    (teacher,) = Manifest.load(shards).names("teachers")
    assert Manifest.load(shards).sealed(f"teachers/{teacher}")["faithfulness"]["examples"] > 0
    assert Receipt.load(shards / "teachers" / teacher, 1).rows > 0
