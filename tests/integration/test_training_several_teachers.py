"""Whole runs with several teachers: what is logged, what a resume needs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sra_data.errors import ConfigError, ShardError, TrainingError
from sra_train.record.tracking import read_metrics
from tests.integration.command_lines import sra_train
from tests.synthetic_shards import STUDENT, TEACHERS, SyntheticShards, make_shards
from tests.training_runs import Interrupting, losses, train, weights

BOTH = [TEACHERS[0], f"{TEACHERS[1]}:0.25"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShards:
    """Shards of two teachers, the second of which lacks two rows of the training split."""
    return make_shards(tmp_path_factory.mktemp("two"), num_teachers=2, num_skipped_by_second=3)


def steps_of(out: Path) -> list[dict[str, float]]:
    return [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "step"]


def test_terms_are_logged_weighted_and_by_teacher_and_lacking_rows_are_counted(two, tmp_path) -> None:
    summary = train(two, tmp_path / "out", data__teachers=BOTH, tracking__plots=True)
    steps = steps_of(tmp_path / "out")
    for step in steps:
        for term in ("cos", "geo", "kd"):
            mixed = 0.75 * step[f"{term}[{TEACHERS[0]}]"] + 0.25 * step[f"{term}[{TEACHERS[1]}]"]
            assert step[term] == pytest.approx(mixed, rel=1e-5)
        assert step["loss"] == pytest.approx(
            0.5 * step["ce"] + 0.5 * (step["cos"] + 50 * step["geo"] + step["kd"]), rel=1e-5
        )
    lacking = [sum(step[f"count_rows_without_teacher[{name}]"] for step in steps) for name in TEACHERS[:2]]
    assert lacking == [0, 2 * 2]  # two rows, two epochs
    assert f"kd[{TEACHERS[1]}]" in summary.metrics
    assert set(weights(tmp_path / "out")) >= {f"method.teachers.{place}.projectors.0" for place in (0, 1)}
    card = (Path(summary.model_folder) / "README.md").read_text()
    assert "`synthetic teacher` (0.75) and `synthetic second` (0.25)" in card
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [(one["folder"], one["weight"]) for one in record["facts"]["teachers"]] == [
        (TEACHERS[0], 0.75), (TEACHERS[1], 0.25)
    ]  # fmt: skip
    assert {f"teachers/{name}" for name in TEACHERS[:2]} <= set(record["roots"])


def test_one_teacher_of_several_is_the_run_it_is_alone(two, tmp_path) -> None:
    """What else lies in the folder changes nothing: same order, same losses."""
    alone = make_shards(tmp_path / "alone")
    train(two, tmp_path / "one", data__teachers=TEACHERS[0])
    train(alone, tmp_path / "other")
    assert losses(tmp_path / "one") == losses(tmp_path / "other")


def test_a_resumed_run_with_two_teachers_is_the_whole_run(two, tmp_path) -> None:
    train(two, tmp_path / "whole", data__teachers=BOTH)
    with pytest.raises(KeyboardInterrupt):
        train(two, tmp_path / "pieces", Interrupting(3), data__teachers=BOTH)
    train(two, tmp_path / "pieces", data__teachers=BOTH)
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "pieces")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_teachers_and_other_weights_are_another_run(two, tmp_path) -> None:
    train(two, tmp_path / "out", training__epochs=1, data__teachers=BOTH)
    for other in (TEACHERS[0], [TEACHERS[0], TEACHERS[1]], BOTH[::-1]):
        with pytest.raises(TrainingError, match=r"data\.teachers: \['teacher-00000000:0\.75', .*then, .*now"):
            train(two, tmp_path / "out", training__epochs=1, data__teachers=other)
    # the same teachers in other words are the same run
    train(two, tmp_path / "out", training__epochs=1, data__teachers=["synthetic teacher:0.75", "second"])


def test_accumulation_with_two_teachers_equals_the_large_batch(two, tmp_path) -> None:
    options = {"data__teachers": BOTH, "training__epochs": 1}
    train(two, tmp_path / "large", **options)
    train(two, tmp_path / "small", **options, training__micro_batch_size=1)  # some know one teacher only
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), rel=2e-5)


def test_a_folder_of_several_teachers_asks_which(two, tmp_path) -> None:
    with pytest.raises(ShardError, match=r"2 teachers \(there are second-.*, teacher-.*\); choose one with --teacher"):
        train(two, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    train(two, tmp_path / "out", method__name="sft", training__epochs=1)  # which has none


def test_a_student_that_was_not_aligned_with_a_teacher_is_told_the_command(two, tmp_path) -> None:
    """The second teacher's own tokenizer as a student: its side is there, its alignment with the first is not."""
    from transformers import AutoTokenizer

    from tests.synthetic_shards import make_student

    folder = two.shards.parent / "second"
    make_student(folder, AutoTokenizer.from_pretrained(folder), dropout=0.0)
    with pytest.raises(ShardError, match=r"not aligned; run `sra-data align --teacher synthetic teacher --student"):
        train(two, tmp_path / "out", student__name=str(folder), data__teachers=TEACHERS[0])
    with pytest.raises(ConfigError, match=r"weights 0\.5, 0\.6 sum to 1\.1"):
        train(two, tmp_path / "out", data__teachers=[f"{TEACHERS[0]}:0.5", f"{TEACHERS[1]}:0.6"])
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_teachers_and_weights(two, tmp_path) -> None:
    arguments = ("--teacher", "second", "--teacher", f"{TEACHERS[0]}:0.75", "--student", STUDENT)
    run = ("--output-dir", tmp_path / "out", "--max-steps", 2, "--batch-size", 4, "--set", "tracking.plots=false")
    answer = sra_train("run", two.shards, *arguments, *run, "--json")
    assert answer.exit_code == 0, answer.error
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["identity"]["data.teachers"] == [f"{TEACHERS[1]}:0.25", f"{TEACHERS[0]}:0.75"]
    refused = sra_train("run", two.shards, "--teacher", "second:0.5", *run)
    assert "the weights 0.5 sum to 0.5; they must sum to 1" in refused.error
