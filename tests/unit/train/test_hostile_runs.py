"""Laws of the folder of a run that came from somebody else: numbers and texts, never code; damage is one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sra_data.errors import ConfigError, SRAError, TrainingError
from sra_data.shards.durable import write_sealed
from sra_train.compare.records import ARRAYS, TESTED, TRAINED, read_tested, read_trained
from sra_train.config.files import parse_value, read_yaml
from sra_train.record.checkpoint import Checkpoints, Progress, file_hash, full_state, load_full_state
from sra_train.record.run_folder import refuse_foreign_folder, write_text
from sra_train.record.tracking import Metrics, read_metrics
from tests.hostile_models import pickle_that_makes

ODD = (None, [], {}, 5, "x", [[]], {"a": 1}, -1, float("inf"))


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(3, 2)


@pytest.fixture
def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    made = torch.optim.AdamW([{"params": list(model.parameters()), "peak": 1e-2}], lr=1e-2)
    model(torch.ones(1, 3)).sum().backward()
    made.step()
    return made


@pytest.fixture
def kept(model: nn.Module, optimizer: torch.optim.Optimizer, tmp_path: Path) -> Checkpoints:
    """One checkpoint."""
    found = Checkpoints(tmp_path / "checkpoints", keep_last=2, identity={"seed": 0})
    weights, moments = full_state(model, optimizer)
    found.write(model=weights, optimizer=moments, progress=Progress(step=1))
    return found


def one_line(step: Callable[..., Any], *arguments: Any) -> str:
    """What a step is refused with; empty where it is not."""
    said = ""
    try:
        step(*arguments)
    except SRAError as error:
        said = str(error)
    assert "\n" not in said
    return said


def reforged(path: Path, **changes: Any) -> None:
    """state.json with the hashes of the files as they are now, as a forger would."""
    state = json.loads((path / "state.json").read_text())
    state["xxh3"] = {name: file_hash(path / name) for name in ("model.safetensors", "optimizer.safetensors")}
    write_sealed(path / "state.json", state | changes)


def test_a_pickle_in_a_checkpoint_is_never_run(kept: Checkpoints, tmp_path: Path) -> None:
    made, path = tmp_path / "made", kept.path(1)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        before = {file: file.read_bytes() for file in path.iterdir()}
        (path / name).write_bytes(pickle_that_makes(made))
        if name != "state.json":
            reforged(path)
        assert one_line(kept.read, 1)
        assert not made.exists()
        for file, content in before.items():
            file.write_bytes(content)
    kept.read(1)


@pytest.mark.parametrize("name", ["identity", "progress", "optimizer", "xxh3"])
def test_a_malformed_state_is_one_line(
    kept: Checkpoints, model: nn.Module, optimizer: torch.optim.Optimizer, name: str
) -> None:
    path = kept.path(1) / "state.json"
    state = json.loads(path.read_text())

    def resume() -> None:
        weights, moments, _ = kept.read(1)
        load_full_state(model, optimizer, weights, moments)

    for odd in ODD:
        write_sealed(path, {**state, name: odd})
        assert one_line(resume), f"{name} {odd}"
        for field in state[name]:
            changed = copy.deepcopy(state)
            changed[name][field] = odd
            write_sealed(path, changed)
            one_line(resume)
    path.write_text("[" * 100_000)
    assert "damaged" in one_line(resume)


def test_no_name_of_a_state_leads_to_another_file(kept: Checkpoints) -> None:
    reforged(kept.path(1), xxh3={"../../own": "0" * 16, "model.safetensors": "", "optimizer.safetensors": ""})
    assert "xxh3" in one_line(kept.read, 1)


def test_tensors_of_other_shapes_are_one_line(
    kept: Checkpoints, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    path = kept.path(1)
    save_file({name: torch.ones(7) for name in load_file(path / "model.safetensors")}, path / "model.safetensors")
    reforged(path)
    weights, moments, _ = kept.read(1)
    assert "checkpoint: its tensors do not fit the model (" in one_line(
        load_full_state, model, optimizer, weights, moments
    )


def test_a_folder_that_is_no_checkpoint_is_none(kept: Checkpoints) -> None:
    for name in ("step-", "step-x", "step--1", "step-1e3", "step-²"):
        (kept.folder / name).mkdir()
    assert kept.steps() == [1]


@pytest.mark.parametrize("content", ["[]", "{", '{"identity": 5}', '{"identity": []}', "null", "[" * 100_000])
def test_a_damaged_record_of_a_run_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert "run.json: damaged (" in one_line(refuse_foreign_folder, tmp_path, {"seed": 0})


LINES = {
    "cut": b'{"kind": "step", "st',
    "no object": b"[]",
    "a number": b"5",
    "without its step": b'{"kind": "step"}',
    "a step that is no number": b'{"step": "x", "kind": "step"}',
    "a step of half": b'{"step": 1.5, "kind": "step"}',
    "a truth for a step": b'{"step": true, "kind": "step"}',
    "without its kind": b'{"step": 2}',
    "a value that is a list": b'{"step": 2, "kind": "step", "loss": [1]}',
    "a value that is a text": b'{"step": 2, "kind": "step", "loss": "x"}',
    "a value that no float holds": b'{"step": 2, "kind": "step", "loss": ' + b"1" * 400 + b"}",
    "a name that leads elsewhere": b'{"step": 2, "kind": "step", "../own": 1}',
    "a name without a letter": b'{"step": 2, "kind": "step", "": 1}',
    "nested": b"[" * 100_000,
    "5,000 digits": b'{"step": 2, "kind": "step", "loss": ' + b"1" * 5_000 + b"}",
    "not UTF-8": b'{"step": 2, "kind": "step", "name": "\xff\xfe"}',
    "NUL bytes": b"\0" * 64,
    "NUL bytes in front": b'\0\0{"step": 2, "kind": "step"}',
}


@pytest.mark.parametrize("line", LINES)
def test_a_damaged_line_of_metrics_costs_itself_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n' + LINES[line] + b'\n{"kind": "step", "step": 3}\n')
    assert [record["step"] for record in read_metrics(path)] == [1, 3]
    metrics = Metrics(tmp_path, resume_step=3)
    assert metrics.num_damaged == 1
    metrics.close()
    assert path.read_bytes() == b'{"kind": "step", "step": 1}\n{"kind": "step", "step": 3}\n'
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["kind,step", "step,1", "step,3"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("mine")
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / f"{name}.tmp").symlink_to(own)
    write_text(tmp_path / "config.yaml", "new")
    Metrics(tmp_path, resume_step=0).close()
    assert own.read_text() == "mine"


def test_the_records_of_a_comparison_are_numbers_or_one_line(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (tmp_path / TESTED).write_text(json.dumps({"asked": {}, "rouge": None, "left_out": {}}))
    for content in (pickle_that_makes(made), b"", b"PK\x03\x04", b"\x93NUMPY"):
        (tmp_path / ARRAYS).write_bytes(content)
        with pytest.raises(TrainingError, match="damaged"):
            read_tested(tmp_path, {})
    assert not made.exists()
    for content in ("[]", '{"x": 1}', "{", "[" * 100_000):
        (tmp_path / TRAINED).write_text(content)
        with pytest.raises(TrainingError, match="damaged"):
            read_trained(tmp_path)


@pytest.mark.parametrize(
    "content", ["[" * 50_000, "a: 2024-99-99", "!!python/object/apply:os.getcwd []", "a: !!python/name:os.system", "\0"]
)
def test_a_configuration_is_data_or_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match="not YAML") as raised:
        read_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(raised.value)
    parse_value(content)
