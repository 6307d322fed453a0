"""What a report reads of runs, and what it refuses in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sra_data.errors import ConfigError, TrainingError
from sra_train.report.page import differing, side_by_side
from sra_train.report.records import names_of, numbers_of, provenance_of, read_runs
from tests.unit.run_report.runs import NASTY, write_run


def test_the_numbers_are_those_of_the_records(tmp_path: Path) -> None:
    (run,) = read_runs([str(write_run(tmp_path / "one"))])
    numbers = dict(numbers_of(run))
    assert numbers["steps"] == "120 of 200"
    assert numbers["loss at the last step"] == "3.8000"
    assert numbers["best on the development split"] == "bits per byte 2.9200, step 80"  # the last one is worse
    assert numbers["bits per byte there at the end"] == "3.3800"
    assert numbers["training time"] == "4:00"
    assert numbers["seconds a step, median"] == "2"
    assert numbers["student tokens per second, median"] == "50"
    assert numbers["share of a step spent waiting for data, median"] == "1.00%"
    assert numbers["peak memory"] == "1.0 MB"
    assert numbers["model"] == ""
    assert numbers["taught by"] == f"org/{NASTY}"
    made_of = dict(provenance_of(run))
    assert made_of["data"] == "a corpus.jsonl"
    assert made_of["root of corpus"] == "ab" * 32
    assert made_of["git"] == f"{'cd' * 20} with changes"


def test_the_best_of_a_metric_that_should_rise_is_the_highest(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", evaluation={"metric": "rouge_l"})
    with (folder / "metrics.jsonl").open("a") as file:
        for step, value in ((121, 20.0), (122, 30.0), (123, 10.0)):
            file.write(f'{{"kind": "evaluation", "step": {step}, "rouge_l": {value}}}\n')
    (run,) = read_runs([str(folder)])
    assert run.best() == ("rouge_l", 30.0, 122)


def test_runs_are_told_apart_by_as_much_of_their_folders_as_it_takes() -> None:
    assert names_of([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert names_of([Path("/a/sft/seed-1/run"), Path("/a/sra/seed-1/run")]) == ["sft", "sra"]
    assert names_of([Path("/a/sft/seed-1/run"), Path("/a/sft/seed-2/run")]) == ["seed-1", "seed-2"]
    assert names_of([Path("/a/x/b"), Path("/a/y/b"), Path("/a/x/c")]) == ["x/b", "y/b", "x/c"]
    (name,) = names_of([Path("/a") / ("x" * 99)])
    assert len(name) == 36


def test_side_by_side_every_row_has_a_cell_for_every_run(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "plain", method={"name": "sft"})
    runs = read_runs([str(write_run(tmp_path / "taught")), str(plain)])
    table = side_by_side(runs, "run", numbers_of)
    assert table.head == ("run", "taught", "plain")
    assert {len(row) for row in table.rows} == {3}
    assert next(row for row in table.rows if row[0] == "method") == ("method", "sra", "sft")
    assert not any(row[0] == "model" for row in table.rows)  # none has one
    assert sorted(row[0] for row in differing(runs).rows) == ["method.alpha", "method.name"]
    assert ("method.alpha", "0.5", "—") in differing(runs).rows


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "run.json").unlink(), r"not the folder of a run \(run.json is missing\); give one that"),
        (lambda run: (run / "run.json").write_text("[1]"), r"damaged \(no object\); start the run again"),
        (lambda run: (run / "run.json").write_text("{"), r"damaged \(.*\); start the run again"),
        (lambda run: (run / "config.yaml").unlink(), r"damaged \(.*\); start the run again"),
        (lambda run: (run / "metrics.jsonl").unlink(), "has no step yet; wait for the first, or name another run"),
        (lambda run: (run / "metrics.jsonl").write_text("{}\n"), "has no step yet"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_one_line(spoil, message: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    spoil(folder)
    with pytest.raises(TrainingError, match=message) as error:
        read_runs([str(folder)])
    assert "\n" not in str(error.value)


def test_a_configuration_that_is_none_and_a_run_named_twice_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    with pytest.raises(TrainingError, match="named twice; name each run once"):
        read_runs([str(folder), str(folder)])
    (folder / "config.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="a configuration is a mapping"):
        read_runs([str(folder)])


@pytest.mark.parametrize("section", ["data", "method", "evaluation", "student"])
@pytest.mark.parametrize("value", [None, "text", [1]])
def test_a_section_of_another_form_breaks_nothing(section: str, value: object, tmp_path: Path) -> None:
    (run,) = read_runs([str(write_run(tmp_path / "one", **{section: value}))])
    assert dict(numbers_of(run))["steps"] == "120 of 200"
    assert run.settings
