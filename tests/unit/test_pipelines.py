"""The runnable pipelines name methods that exist, and their settings are ones a run would take."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sra_train.compare.plan import entries_of
from sra_train.config import PRESETS, load_config
from sra_train.methods import METHODS

PIPELINES = Path(__file__).resolve().parent.parent.parent / "pipelines"
FILES = sorted(path for folder in ("demo", "compare") for path in (PIPELINES / folder).glob("*.yaml"))


def script(folder: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py of a pipeline, as a module; what it imports beside itself is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("models", "results", "small_models", "steps"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location(f"{folder}_run", PIPELINES / folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_settings_are_those_of_a_run(path: Path) -> None:
    config = load_config(path)
    assert config.evaluation.metric == "bits_per_byte"
    assert config.training.precision == "no"


def test_every_method_that_is_compared_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    demo, compare = script("demo", monkeypatch), script("compare", monkeypatch)
    for methods in (demo.METHODS, ",".join([*compare.MANY_SEEDS, *(f"{one}:3" for one in compare.FEW_SEEDS)])):
        found, _ = entries_of(methods, None, seeds=5, known=METHODS)
        assert found[0].name == "sft"
    named = [*compare.MANY_SEEDS, *compare.FEW_SEEDS]
    assert set(METHODS) <= {PRESETS[name].method if name in PRESETS else name for name in named}


def test_results_say_best_first_and_what_is_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = script("compare", monkeypatch).write_results.__globals__
    row = {"num_seeds": 3, "num_diverged": 0, "rate": 1e-3, "deviation": 0.01, "seconds_per_step": 0.1, "covered": None}
    row |= {"tempered": 2.3, "rouge_l": None}
    rows = [
        {**row, "name": "sft", "bits_per_byte": 2.5, "difference": None},
        {**row, "name": "a", "bits_per_byte": 2.6, "difference": {"mean": 0.1, "low": -0.1, "high": 0.3}},
        {
            **row,
            "name": "b",
            "bits_per_byte": 2.4,
            "difference": {"mean": -0.1, "low": -0.2, "high": -0.05},
            "rouge_l": 3.14,
        },
    ]
    found = {
        "methods": rows,
        "references": [{"name": "teacher", "bits_per_byte": 2.0, "tempered": 1.9, "rouge_l": 4.0}],
        "notes": ["few seeds"],
    }
    lines = results["section"]("one", found)
    table = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert table == ["method", "b", "sft", "a", "*teacher*"]
    assert "> few seeds" in lines
    assert "| *teacher* |  |  | 2.0000 | 1.9000 |  | 4.0 |  |  |" in lines
    assert any(
        line.startswith("| b | 3 | 0.001 | 2.4000 ± 0.0100 | 2.3000 |") and "| 3.1 | 0.10 |" in line for line in lines
    )
    assert any("**-0.1000 [-0.2000, -0.0500]**" in line for line in lines)
    assert any("+0.1000 [-0.1000, +0.3000]" in line and "**" not in line for line in lines)
    assert results["overview"]({"one": found})[2:] == [
        "| a | +0.1000 [-0.1000, +0.3000] |",
        "| b | **-0.1000 [-0.2000, -0.0500]** |",
    ]
