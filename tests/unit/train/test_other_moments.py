"""What an optimizer remembers is of the model's own parameters, or it is refused before a step."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sra_data.errors import TrainingError
from sra_train.record.checkpoint import full_state, load_full_state
from sra_train.record.run_folder import claimed


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_what_was_written_is_taken_back() -> None:
    weights, moments = full_state(*trained())
    model, optimizer = trained()
    load_full_state(model, optimizer, weights, moments)
    assert full_state(model, optimizer)[1]["state"].keys() == moments["state"].keys()


def lacking(moments: dict[str, Any]) -> None:
    del moments["state"]["0.weight"]["exp_avg"]


def wider(moments: dict[str, Any]) -> None:
    moments["state"]["0.weight"]["exp_avg"] = torch.zeros(8, 3)


def of_nothing(moments: dict[str, Any]) -> None:
    moments["state"]["2.weight"] = moments["state"].pop("0.weight")


def ungrouped(moments: dict[str, Any]) -> None:
    moments["param_groups"] = []


def grouped_elsewhere(moments: dict[str, Any]) -> None:
    moments["param_groups"][0]["params"].append("nothing")


@pytest.mark.parametrize("change", [lacking, wider, of_nothing, ungrouped, grouped_elsewhere])
def test_what_is_remembered_of_something_else_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    weights, moments = full_state(*trained())
    moments = copy.deepcopy(moments)
    change(moments)
    with pytest.raises(TrainingError, match="checkpoint: what the optimizer remembers of") as caught:
        load_full_state(*trained(), weights, moments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["checkpoints", "model", "plots", "config.yaml", "metrics.jsonl", "metrics.csv"])
def test_a_folder_with_something_of_another_shape_is_refused_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"identity": {}}')
    (tmp_path / name).mkdir() if "." in name else (tmp_path / name).write_text("no folder")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(TrainingError, match=rf"{name}: no (file|folder); move it away"), claimed(tmp_path, {}):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == before
