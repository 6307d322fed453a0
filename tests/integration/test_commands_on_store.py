"""The commands on a place in a store: what they leave there is what they leave in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sra_data.shards.store import Manifest, folder_of
from tests.integration.command_lines import sra_data, write_examples, write_pair
from tests.integration.test_import import capture_both
from tests.stores import Machines, in_memory

URL = "memory://bucket/shards"


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    with in_memory(tmp_path / "machines", monkeypatch) as found:
        yield found


def test_what_commands_leave_in_a_store_is_what_they_leave_in_a_folder(machines: Machines, tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    data = write_examples(tmp_path / "my.jsonl", 8)
    names = ("--teacher", teacher, "--student", student, "--data", data, "--max-length", 200, "--workers", 1)
    kept = ("--layers", "1,last", "--top-k", 5)
    for name, place in (("first", tmp_path / "here"), ("first", URL)):
        machines.use(name)
        assert sra_data("align", *names, "--out", place).exit_code == 0
        machines.use("second")  # the teacher runs on another machine
        assert sra_data("cache-teacher", place, *kept).exit_code == 0
    here, there = Manifest.load(tmp_path / "here"), Manifest.load(folder_of(URL))
    assert there.sections == here.sections
    for section in here.sections:
        assert there.sealed(section)["root"] == here.sealed(section)["root"]
    machines.use("third")
    for command in (("verify", URL), ("list", URL), ("estimate", URL, "--no-time"), ("inspect", "0", "--shards", URL)):
        answer = sra_data(*command, "--json")
        assert answer.exit_code == 0, answer
        assert "machines" not in answer.output  # a workspace is called by its URL
    assert json.loads(sra_data("list", URL, "--json").output)["shards"] == URL
    again = sra_data("align", *names, "--out", URL)
    assert again.exit_code == 0
    assert sra_data("report", URL, "--out", tmp_path / "report.html").exit_code == 0


@pytest.mark.parametrize("format", ["distillkit", "speculators"])
def test_an_import_into_a_store_is_that_into_a_folder(machines: Machines, tmp_path: Path, format: str) -> None:
    teacher, student = write_pair(tmp_path)
    names = ("--teacher", teacher, "--student", student, "--data", write_examples(tmp_path / "my.jsonl", 8))
    machines.use("first")
    for place in (tmp_path / "here", URL):
        assert sra_data("align", *names, "--out", place, "--workers", 1).exit_code == 0
    capture_both(tmp_path / "here", teacher, tmp_path / "distillkit", tmp_path / "speculators", (1, 3))
    layers = ("--captured-layers", "1,3") if format == "speculators" else ()
    machines.use("second")
    places = tmp_path / "here", URL
    answers = [sra_data("import", format, tmp_path / format, place, *layers, "--json") for place in places]
    assert [answer.exit_code for answer in answers] == [0, 0], answers
    here, there = (json.loads(answer.output) for answer in answers)
    assert (here["root"], here["section"]) == (there["root"], there["section"])
    machines.use("third")
    assert sra_data("verify", URL).exit_code == 0
