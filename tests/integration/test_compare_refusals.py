"""What `sra-train compare` refuses, each in one line and before any run, and what it lists without shards."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sra_data.errors import ConfigError, ShardError, TrainingError
from sra_train.compare.options import CompareOptions
from sra_train.compare.stage import compare
from sra_train.config import PRESETS, Preset
from tests.integration.command_lines import sra_train
from tests.synthetic_shards import make_shards

SETTINGS = ["training.max_steps=3", "training.batch_size=5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "sft,nonsense"}, "nonsense: neither a method"),
        ({"seeds": 0}, "no positive number of seeds"),
        ({"settings": ["method.alpha=0.3"]}, r"--set method\.alpha: not common to all methods .*name a preset"),
        ({"settings": ["training.learning_rate=1"]}, "give --rates"),
        ({"settings": ["evaluation.enabled=false"]}, "rates are chosen on the development split"),
        ({"tune_steps": 0}, "--tune-steps 0: not a positive number"),
        ({"split": "test"}, "are of --test; give --test"),
        ({"workers": 0}, "--workers 0: not a positive number"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(still, tmp_path, changes, message) -> None:
    options = CompareOptions(
        shards=str(still.shards), output_dir=str(tmp_path / "out"), methods="sft", settings=SETTINGS
    )
    with pytest.raises(ConfigError, match=message) as caught:
        compare(replace(options, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_pages_columns_and_splits_are_refused_before_any_run(tmp_path, monkeypatch) -> None:
    made = make_shards(tmp_path / "bare", top_k=0)
    reading = {"kd_source": "top_k", "kd_position": "boundary", "cos": False, "geo": False}
    monkeypatch.setitem(PRESETS, "reading", Preset("reading", "sra", "reads the top k", reading))
    options = CompareOptions(
        shards=str(made.shards), output_dir=str(tmp_path / "out"), methods="sft,reading", settings=SETTINGS
    )
    with pytest.raises(ShardError, match=r"reads top_k\.ids, .*`sra-data cache-teacher .* --top-k 64"):
        compare(options)
    without = make_shards(tmp_path / "without", with_teacher=False)
    with pytest.raises(ShardError, match="sra-data cache-teacher"):
        compare(replace(options, shards=str(without.shards), methods="sft,sra"))
    undeveloped = make_shards(tmp_path / "undeveloped", num_dev=0)
    with pytest.raises(ConfigError, match="the development split is empty"):
        compare(replace(options, shards=str(undeveloped.shards)))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_comparison_is_refused(still, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    options = CompareOptions(shards=str(still.shards), output_dir=str(tmp_path), methods="sft", settings=SETTINGS)
    with pytest.raises(TrainingError, match="not empty and not the folder of a comparison"):
        compare(options)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_methods_and_presets_are_listed_without_shards() -> None:
    said = sra_train("compare", "--list-methods")
    assert said.exit_code == 0
    for name in ("sft", "sra", *PRESETS):
        assert any(line.split()[:1] == [name] for line in said.output.splitlines())
    listed = json.loads(sra_train("compare", "--list-methods", "--json").output)
    assert {one["name"] for one in listed["presets"]} == set(PRESETS)
    assert listed["methods"][0]["about"]


def test_a_run_takes_a_preset() -> None:
    said = sra_train("run", "--preset", "sra-kd-only", "--set", "method.temperature=3", "--print-config")
    assert "cos: false" in said.output
    assert "temperature: 3" in said.output
    assert "choose one of paper" in sra_train("run", "--preset", "mine", "--print-config").error
