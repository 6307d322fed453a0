"""Presets: what each stands for exists, and whatever a file or a flag says wins over it."""

from __future__ import annotations

import pytest

from sra_data.errors import ConfigError
from sra_train.config import ABLATIONS, PRESETS, load_config
from sra_train.methods.sra import SRAOptions


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_configuration(name) -> None:
    config = load_config(preset=name)
    assert config.method.name == PRESETS[name].method
    for key, value in PRESETS[name].options.items():
        assert getattr(config.method.options, key) == value
    assert PRESETS[name].name == name
    assert "\n" not in PRESETS[name].about


def test_paper_is_the_published_method() -> None:
    assert load_config(preset="paper").method.options == SRAOptions()


def test_presets_that_differ_in_name_differ_in_what_they_are() -> None:
    options = [load_config(preset=name).method for name in PRESETS]
    assert all(one != other for place, one in enumerate(options) for other in options[:place])


def test_an_ablation_takes_every_combination_of_its_switches_once() -> None:
    def switches(names, fields):
        found = [load_config(preset=name).method.options for name in names]
        return {tuple(getattr(options, field) for field in fields) for options in found}

    terms, weighting = ABLATIONS["paper"].values()
    assert switches(terms, ("kd", "geo", "cos")) == {
        (True, False, False),
        (True, True, False),
        (True, False, True),
        (False, True, True),
        (True, True, True),
    }
    assert switches(weighting, ("pooling", "salience_power")) == {
        ("mean", 0.0),
        ("mean", 1.0),
        ("attention", 0.0),
        ("attention", 1.0),
    }


def test_a_file_and_flags_win_over_a_preset(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: {temperature: 3, alpha: 0.6}\ntraining: {epochs: 3}\n")
    config = load_config(file, {"method.alpha": 0.7}, preset="sra-uniform-mean")
    options = config.method.options
    assert (options.pooling, options.temperature, options.alpha) == ("mean", 3, 0.7)
    assert config.training.epochs == 3
    file.write_text("method: sra\n")
    assert load_config(file, preset="sra-uniform-mean") == load_config(preset="sra-uniform-mean")


def test_an_unknown_preset_or_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--preset best: no such preset; choose one of paper, tuned, "):
        load_config(preset="best")
    with pytest.raises(ConfigError, match=r"--preset paper: is of the method sra, but method=sft is asked for"):
        load_config(overrides={"method.name": "sft"}, preset="paper")


def test_other_defaults_lie_beneath_the_file(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: {name: sra, alpha: 0.9}\ntraining: {epochs: 3}\n")
    beneath = {"training.epochs": 7, "training.batch_size": 8, "method.name": "sft"}
    config = load_config(file, beneath=beneath, not_from_file=("method",))
    assert (config.training.epochs, config.training.batch_size, config.method.name) == (3, 8, "sft")
