"""`sra-train compare`: a whole small comparison, killed once and gone on with."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sra_data.errors import TrainingError
from sra_data.terminal import Reporter, Task
from sra_train.compare.options import CompareOptions
from sra_train.compare.results import Comparison
from sra_train.compare.stage import compare
from sra_train.compare.tables import Shown
from sra_train.config import PRESETS, load_config
from sra_train.measure.evaluation import EvaluateOptions, evaluate
from tests.synthetic_shards import make_examples, make_shards

SETTINGS = ["training.max_steps=3", "training.batch_size=5", "training.warmup=0", "evaluation.every_steps=1"]


pytestmark = pytest.mark.slow  # ten processes, each of which loads torch


class KilledAfterOne(Reporter):
    """Interrupts when the first job is done."""

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
        def show(task: Task) -> None:
            raise KeyboardInterrupt

        yield Task(description, total, unit, show=show)


class Listening(Reporter):
    """Remembers the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True)
class Whole:
    """A comparison that was killed once, and what stood there then."""

    options: CompareOptions
    found: Comparison
    there: dict[Path, int]  # file that says something is done -> when it was written
    said: list[str]


@pytest.fixture(scope="module")
def whole(still, tmp_path_factory) -> Whole:
    """Two methods, two seeds, two rates, three steps."""
    folder = tmp_path_factory.mktemp("compare")
    test = folder / "test.jsonl"
    rows = make_examples(6, 0, seed=9)
    test.write_text("".join(json.dumps({"prompt": row.prompt, "response": row.response}) + "\n" for row in rows))
    options = CompareOptions(
        shards=str(still.shards),
        output_dir=str(folder / "out"),
        methods="sft,tuned",
        seeds=2,
        rates=(1e-3, 1e-2),
        settings=SETTINGS,
        test=str(test),
        teacher_model=str(still.student),
        workers=2,
    )
    with pytest.raises(KeyboardInterrupt):
        compare(options, KilledAfterOne())
    there = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("t*ed.json")}
    reporter = Listening()
    return Whole(options, compare(options, reporter), there, reporter.lines)


def test_a_killed_comparison_goes_on_with_what_is_missing(whole) -> None:
    assert whole.there
    for path, written in whole.there.items():
        assert path.stat().st_mtime_ns == written
    assert any(line.startswith("choosing rates: ") and line.endswith("are there already") for line in whole.said)


def test_a_comparison_that_is_done_does_nothing_and_says_the_same(whole) -> None:
    out = Path(whole.options.output_dir)
    done = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".npz", ".jsonl", ".safetensors")
    }
    again = compare(whole.options)
    assert again == whole.found
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_the_runs_are_the_grid_and_the_seeds_at_the_best_rate(whole) -> None:
    out = Path(whole.options.output_dir)
    for method in whole.found.methods:
        tried = {one.rate: one.development for one in method.grid}
        assert set(tried) == {1e-3, 1e-2}
        assert tried[method.rate] == min(tried.values())
        trained = {path.parent.name for path in out.glob(f"runs/{method.name}/lr-{method.rate:g}/*/trained.json")}
        assert trained == {"seed-42", "seed-43"}
    assert [(run.method, run.seed, run.status, run.steps) for run in whole.found.runs] == [
        ("sft", 42, "done", 3),
        ("sft", 43, "done", 3),
        ("tuned", 42, "done", 3),
        ("tuned", 43, "done", 3),
    ]
    assert not list(out.rglob("checkpoints"))


def test_the_numbers_are_those_of_evaluate_and_of_the_records(whole) -> None:
    out = Path(whole.options.output_dir)
    for run in whole.found.runs:
        model = str(out / run.folder / "run" / "model")
        measured = evaluate(EvaluateOptions(models=(model,), data=str(whole.options.test)))
        assert run.bits_per_byte == pytest.approx(measured.scores[0].bits_per_byte, rel=1e-6)
        assert measured.num_bytes == whole.found.num_bytes
        assert min(bits for _, bits in run.curve) == pytest.approx(run.development, rel=1e-5)
        assert 0.25 <= run.temperature <= 4
        assert run.seconds_per_step > 0
        assert run.peak_memory_bytes > 0
    sft, tuned = whole.found.methods
    assert set(sft.losses) == {"loss", "ce"}
    assert {"loss", "ce", "kd"} <= set(tuned.losses)
    assert sft.covered is None
    assert 0 < tuned.covered < 1


def test_the_difference_is_that_of_the_means_and_lies_in_its_interval(whole) -> None:
    sft, tuned = whole.found.methods
    assert sft.difference is None
    assert tuned.difference.num_seeds == 2
    assert tuned.difference.mean == pytest.approx(tuned.bits_per_byte - sft.bits_per_byte, abs=1e-9)
    assert tuned.difference.low <= tuned.difference.mean <= tuned.difference.high


def test_everything_is_written_and_the_page_stands_alone(whole) -> None:
    out = Path(whole.options.output_dir)
    assert json.loads((out / "results.json").read_text())["methods"][1]["name"] == "tuned"
    with (out / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["sft", "tuned", "untrained", "teacher"]
    with (out / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "comparison.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.partition("<body>")[2].replace("http://www.w3.org", "")
    assert f"name: {PRESETS['tuned'].method}" in page
    config = load_config(out / "configs" / "tuned.yaml")
    assert config.training.learning_rate == whole.found.method("tuned").rate
    assert config.method == load_config(preset="tuned").method


def test_a_teacher_that_is_no_better_makes_the_comparison_void(whole) -> None:
    """Here the untrained student stands for the teacher."""
    assert any(note.startswith("THIS COMPARISON MEANS NOTHING") for note in whole.found.notes)
    untrained, teacher = whole.found.references
    assert untrained.bits_per_byte == pytest.approx(teacher.bits_per_byte)
    lines = Shown(whole.found).lines()
    assert any("MEANS NOTHING" in line for line in lines)
    assert str(Path(whole.options.output_dir) / "comparison.html") in lines


def test_another_comparison_is_refused_with_what_differs(whole, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"holds another comparison: .*training\.max_steps: 3 then, 4 now"):
        compare(replace(whole.options, settings=[*SETTINGS, "training.max_steps=4"]))
    with pytest.raises(TrainingError, match=r"holds another comparison: .*test\.digest: [0-9a-f]+ then, [0-9a-f]+ now"):
        compare(replace(whole.options, test=None))
    other = make_shards(tmp_path, seed=5)
    with pytest.raises(TrainingError, match=r"root\.corpus: [0-9a-f]+ then, [0-9a-f]+ now"):
        compare(replace(whole.options, shards=str(other.shards)))


def test_a_preset_that_was_changed_is_another_run(whole, monkeypatch) -> None:
    changed = replace(PRESETS["tuned"], options={**PRESETS["tuned"].options, "alpha": 0.9})
    monkeypatch.setitem(PRESETS, "tuned", changed)
    with pytest.raises(TrainingError, match=r"holds another run: method\.alpha: 0\.5 then, 0\.9 now"):
        compare(whole.options)


def test_a_grid_in_which_every_rate_diverges_is_one_line(still, tmp_path) -> None:
    options = CompareOptions(
        shards=str(still.shards),
        output_dir=str(tmp_path / "out"),
        methods="sft",
        seeds=1,
        rates=(1e4,),
        settings=SETTINGS,
    )
    with pytest.raises(TrainingError, match=r"sft: diverges at every point of the grid \(lr-10000\)") as e:
        compare(options)
    assert "\n" not in str(e.value)
