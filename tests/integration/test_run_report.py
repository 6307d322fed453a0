"""`sra-train report` of runs as the trainer leaves them, with answers of the finished students."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.command_lines import sra_train
from tests.training_runs import train
from tests.unit.pages.test_pages import assert_it_stands_alone


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs of the same shards."""
    folder = tmp_path_factory.mktemp("runs")
    for name, method in (("taught", "sra"), ("plain", "sft")):
        train(made, folder / name, method__name=method, training__max_steps=3, evaluation__every_steps=2)
    return folder / "taught", folder / "plain"


def test_the_page_of_a_run_has_curves_answers_and_what_it_is_made_of(runs, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    answer = sra_train("report", runs[0], "--out", out, "--samples", 2, "--device", "cpu", "--json")
    assert answer.exit_code == 0, answer.error
    said = json.loads(answer.output)
    assert (said["runs"], said["num_samples"], said["missing"]) == ({"taught": 3}, 2, [])
    text = out.read_text(encoding="utf-8")
    assert_it_stands_alone(text)
    for words in ("Cross entropy", "L_cos", "Learning rate", "Throughput", "Waiting for data", "Peak memory"):
        assert f"<h3>{words}" in text or words in text
    for root in json.loads((runs[0] / "run.json").read_text())["roots"].values():
        assert root in text
    assert "learning_rate: 0.003" in text
    assert text.count("the data</th>") == 2


def test_runs_stand_side_by_side(runs, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    answer = sra_train("report", *runs, "--out", out, "--samples", 0)
    assert answer.exit_code == 0, answer.error
    assert f"page: {out}" in answer.output.splitlines()
    text = out.read_text(encoding="utf-8")
    assert_it_stands_alone(text)
    assert '<th scope="col" class="n">taught</th><th scope="col" class="n">plain</th>' in text
    assert '<td>method.name</td><td class="n">sra</td><td class="n">sft</td>' in text
    assert "None were asked for." in text


def test_a_run_ends_with_the_command_that_shows_it(runs, made, tmp_path: Path) -> None:
    answer = sra_train("run", made.shards, "--output-dir", runs[1], "--method", "sft", "--max-steps", 3, *SAME)
    assert answer.exit_code == 0, answer.error
    assert answer.output.splitlines()[-1] == f"next: sra-train report {runs[1]}"


SAME = (
    *("--epochs", 2, "--batch-size", 5, "--learning-rate", 3e-3, "--set", "training.epsilon=1e-6"),
    *("--set", "tracking.plots=false", "--set", "evaluation.every_steps=2"),
)
