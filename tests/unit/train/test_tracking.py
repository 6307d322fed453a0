"""What a run writes down: lines in order, cut back on a resume, a table and pictures of all of it."""

import csv
import json

import pytest
from accelerate import Accelerator

from sra_data.errors import ConfigError
from sra_train.config import TrackingConfig
from sra_train.record.plots import draw_run, running_mean
from sra_train.record.tracking import Metrics, read_metrics, start_trackers


def write_steps(folder, steps, resume_step=0) -> None:
    metrics = Metrics(folder, resume_step=resume_step)
    for step in steps:
        metrics.write("step", step, {"loss": 1 / step, "kd": 2.0, "lr": 1e-3})
    metrics.write("evaluation", steps[-1], {"loss": 0.5, "bits_per_byte": 1.5})
    metrics.close()


def test_a_resume_drops_what_came_behind_its_checkpoint(tmp_path) -> None:
    write_steps(tmp_path, [1, 2, 3, 4])
    write_steps(tmp_path, [3, 4, 5], resume_step=2)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["kind"], record["step"]) for record in records] == [
        *(("step", step) for step in (1, 2, 3, 4, 5)),
        ("evaluation", 5),
    ]


def test_an_evaluation_the_checkpoint_does_not_know_of_comes_again(tmp_path) -> None:
    write_steps(tmp_path, [1, 2])
    for is_evaluated, kinds in ((True, ["step", "step", "evaluation"]), (False, ["step", "step"])):
        Metrics(tmp_path, resume_step=2, is_evaluated=is_evaluated).close()
        assert [record["kind"] for record in read_metrics(tmp_path / "metrics.jsonl")] == kinds


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path) -> None:
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    write_steps(tmp_path, [3], resume_step=2)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2, 3, 3]


def test_the_table_has_a_row_for_every_line_and_a_column_for_every_name(tmp_path) -> None:
    write_steps(tmp_path, [1, 2])
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["kind"] for row in rows] == ["step", "step", "evaluation"]
    assert rows[0]["bits_per_byte"] == ""
    assert float(rows[1]["loss"]) == 0.5


def test_a_number_that_is_none_is_null_so_that_every_line_is_json(tmp_path) -> None:
    metrics = Metrics(tmp_path, resume_step=0)
    metrics.write("step", 1, {"loss": float("nan"), "grad_norm": float("inf")})
    metrics.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "kind": "step", "step": 1, "loss": None, "grad_norm": None,
    }  # fmt: skip


def test_every_quantity_has_its_picture(tmp_path) -> None:
    write_steps(tmp_path, list(range(1, 120)))
    made = draw_run(read_metrics(tmp_path / "metrics.jsonl"), tmp_path / "plots")
    assert sorted(path.name for path in made) == ["bits_per_byte.png", "kd.png", "loss.png", "lr.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_the_running_mean_is_over_the_last_few() -> None:
    assert running_mean([1.0, 2.0, 3.0, 4.0], 2) == [1.0, 1.5, 2.5, 3.5]


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.trackers=wandb: .*pip install wandb"):
        start_trackers(Accelerator(cpu=True), TrackingConfig(trackers=("wandb",)), folder=tmp_path, config={})
