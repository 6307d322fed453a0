"""Checkpoints: whole or not there, read back bit for bit, refused by another run; no pickle anywhere."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from sra_data.errors import DamagedError, TrainingError
from sra_data.shards.durable import write_sealed
from sra_train.record import checkpoint
from sra_train.record.checkpoint import Checkpoints, Progress, full_state, load_full_state

IDENTITY = {"root.corpus": "abc", "training.batch_size": 4, "method.layer_pairs": [("last", "last")]}


class Tied(nn.Module):
    """An embedding, a layer and a head tied to the embedding, with a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("constant", torch.ones(2), persistent=False)


def trained(seed: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied()
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "name": "all", "peak": 1e-2, "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9))
    for _ in range(3):
        (model.head(model.layer(model.embedding(torch.arange(7)))) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def store(tmp_path: Path, **changes) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep_last=changes.pop("keep_last", 2), identity=IDENTITY | changes)


def write(kept: Checkpoints, step: int, **progress) -> Path:
    weights, moments = full_state(*trained())
    return kept.write(model=weights, optimizer=moments, progress=Progress(step=step, **progress))


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path) -> None:
    model, optimizer = trained()
    kept = store(tmp_path)
    weights, moments = full_state(model, optimizer)
    kept.write(model=weights, optimizer=moments, progress=Progress(step=3, tokens=99, best_metric=0.1, best_step=2))
    other, other_optimizer = trained(seed=1)
    found_weights, found_moments, progress = kept.read(3)
    load_full_state(other, other_optimizer, found_weights, found_moments)
    assert progress == Progress(step=3, tokens=99, best_metric=0.1, best_step=2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, dict(other.named_parameters())[name])
    for one, two in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert other_optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_shared_and_frozen_tensors_are_not_written_twice_or_at_all() -> None:
    weights, _ = full_state(*trained())
    assert set(weights) == {"embedding.weight", "layer.weight", "layer.bias", "kept"}


def test_a_checkpoint_holds_no_pickle(tmp_path) -> None:
    path = write(store(tmp_path), 1)
    assert {file.name for file in path.iterdir()} == {"model.safetensors", "optimizer.safetensors", "state.json"}
    json.loads((path / "state.json").read_text())


@pytest.mark.parametrize("call", ["save_file", "publish"])
def test_a_crash_while_writing_leaves_what_was_there(tmp_path, monkeypatch, call) -> None:
    kept = store(tmp_path)
    write(kept, 1)

    def crash(*arguments: object, **named: object) -> None:
        (kept.folder / ".writing-step-00000002" / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, call, crash)
    with pytest.raises(TrainingError, match=r"step-00000002: cannot be written \(no space left\); free space"):
        write(kept, 2)
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000001"]  # and nothing half
    kept.read(1)
    monkeypatch.undo()
    write(kept, 2)
    assert kept.steps() == [1, 2]
    assert sorted(path.name for path in kept.folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_everything_is_flushed_before_the_checkpoint_appears(tmp_path, monkeypatch) -> None:
    flushed: list[str] = []
    renamed: list[int] = []
    rename = os.rename
    monkeypatch.setattr(checkpoint, "flush", lambda path: flushed.append(path.name))
    monkeypatch.setattr(os, "rename", lambda old, new: (renamed.append(len(flushed)), rename(old, new)))
    write(store(tmp_path), 1)
    assert set(flushed[: renamed[0]]) >= {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert flushed[-1] == "checkpoints"


def test_the_last_ones_and_the_best_are_kept(tmp_path) -> None:
    kept = store(tmp_path)
    for step in range(1, 7):
        write(kept, step, best_step=2 if step >= 2 else 1)
    assert kept.steps() == [2, 5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training.batch_size": 8}, "training.batch_size: 4 then, 8 now"),
        ({"root.corpus": "xyz"}, "root.corpus: abc then, xyz now"),
        ({"data.window": 3}, "data.window: absent then, 3 now"),
    ],
)
def test_another_runs_checkpoint_is_refused_field_by_field(tmp_path, change, message) -> None:
    write(store(tmp_path), 1)
    with pytest.raises(TrainingError) as caught:
        store(tmp_path, **change).read(1)
    assert message in str(caught.value)
    assert "--output-dir" in str(caught.value)


def write_plain(path: Path, state: dict) -> None:
    del state["seal"]
    path.write_text(json.dumps(state))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_bit_is_refused(tmp_path, name) -> None:
    path = write(store(tmp_path), 1) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"{name}: damaged"):
        store(tmp_path).read(1)


@pytest.mark.parametrize("change", [{"progress": {}}, {"identity": []}, {"xxh3": {}}, {"optimizer": None}, {"more": 1}])
def test_a_state_of_another_form_is_one_line_whatever_its_seal(tmp_path, change) -> None:
    path = write(store(tmp_path), 1) / "state.json"
    write_sealed(path, json.loads(path.read_bytes()) | change)
    with pytest.raises(TrainingError, match=r"state.json: damaged \(.*; delete .*step-00000001 to go on") as raised:
        store(tmp_path).read(1)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_safetensors_is_one_line(tmp_path) -> None:
    path = write(store(tmp_path), 1)
    (path / "model.safetensors").write_bytes(b"nothing")
    state = json.loads((path / "state.json").read_bytes())
    state["xxh3"]["model.safetensors"] = checkpoint.file_hash(path / "model.safetensors")
    write_sealed(path / "state.json", state)
    with pytest.raises(TrainingError, match=r"model.safetensors: damaged \("):
        store(tmp_path).read(1)


def test_what_a_killed_process_leaves_half_is_removed_and_what_it_moved_aside_comes_back(tmp_path) -> None:
    kept = store(tmp_path)
    whole = write(kept, 3)
    os.rename(whole, kept.folder / ".replaced-step-00000003")  # between the two renames of `publish`
    for name in (".writing-step-00000003", ".dropped-step-00000001"):
        (kept.folder / name).mkdir()
    kept.tidy()
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000003"]
    kept.read(3)
    write(kept, 2)
    os.rename(kept.path(2), kept.folder / ".replaced-step-00000003")  # behind both of them
    kept.tidy()
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000003"]


def test_a_checkpoint_that_is_dropped_is_never_half_there(tmp_path, monkeypatch) -> None:
    kept = store(tmp_path, keep_last=1)
    write(kept, 1)

    def crash(path: Path, **named: object) -> None:
        if path.name.startswith(".dropped"):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "remove", crash)
    with pytest.raises(KeyboardInterrupt):
        write(kept, 2)
    monkeypatch.undo()
    assert kept.steps() == [2]
    kept.tidy()
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("leave", [".writing-step-00000003", ".dropped-step-00000001", ".replaced-step-00000003"])
@pytest.mark.parametrize("call", ["tidy", "prune", "set_aside"])
def test_what_may_not_be_removed_is_one_line(tmp_path, monkeypatch, leave, call) -> None:
    """In a folder that has become read-only; by calls that say so, for root may remove everything."""
    kept = store(tmp_path, keep_last=1)
    write(kept, 2)
    shutil.copytree(kept.path(2), kept.path(3))
    (kept.folder / leave).mkdir()

    def refusing(*paths: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(paths[0]))

    monkeypatch.setattr(checkpoint, "remove", refusing)
    monkeypatch.setattr(os, "rename", refusing)
    acts = {"tidy": kept.tidy, "prune": lambda: kept.prune(None), "set_aside": lambda: kept.set_aside(2)}
    with pytest.raises(TrainingError, match=r"cannot be removed \(Permission denied: .*; make the folder") as caught:
        acts[call]()
    assert "\n" not in str(caught.value)


FOREIGN = (
    "step-00000002.bak", "step-00000002 (copy)", "step-2", "step-000000003", "step-", "step-x", "step-²", "notes",
    ".writing-notes", ".replaced-", ".dropped-step-00000002.bak", "damaged-step-00000001",
)  # fmt: skip


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("mine")])
def test_what_is_no_checkpoint_is_neither_read_nor_removed(tmp_path, make) -> None:
    kept = store(tmp_path, keep_last=1)
    kept.folder.mkdir()
    for name in FOREIGN:
        make(kept.folder / name)
    for step in (1, 2, 3):
        write(kept, step)
        kept.tidy()
    assert kept.steps() == [3]
    assert {path.name for path in kept.folder.iterdir()} == {*FOREIGN, "step-00000003"}


def test_a_file_of_a_checkpoints_name_is_none_and_makes_way_for_one(tmp_path) -> None:
    kept = store(tmp_path)
    kept.folder.mkdir()
    kept.path(4).write_text("a file")
    assert kept.steps() == []
    write(kept, 4)
    kept.read(4)
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000004"]


def test_a_damaged_checkpoint_set_aside_no_longer_counts(tmp_path) -> None:
    kept = store(tmp_path, keep_last=1)
    for _ in range(2):  # the second time there is one of the same name
        write(kept, 2)
        assert kept.set_aside(2) == kept.folder / "damaged-step-00000002"
        assert kept.steps() == []


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors"])
def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, name) -> None:
    path = write(store(tmp_path), 1) / name
    opened = Path.open

    def refuse(self: Path, *arguments: object, **named: object) -> object:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TrainingError, match=rf"{name}: cannot be read \(Permission denied\); make it") as caught:
        store(tmp_path).read(1)
    assert not isinstance(caught.value, DamagedError)


def test_a_checkpoint_of_the_shorter_run_that_is_extended_is_read_where_that_is_finished(tmp_path) -> None:
    short, long = ({"total_steps": total, "training.epochs": total} for total in (2, 4))
    write(store(tmp_path, **short), 1)
    write(store(tmp_path, **short), 2)
    kept = store(tmp_path, **long)
    assert kept.read(2)[2].step == 2
    with pytest.raises(TrainingError, match="of a run of 2 steps, which is not finished"):
        kept.read(1)
    assert kept.read_model(1).keys() == kept.read_model(2).keys()  # the best may be one from its middle
    write(kept, 4)
    with pytest.raises(TrainingError, match=r"training\.epochs: 4 then, 2 now"):
        store(tmp_path, **short).read(4)
    with pytest.raises(TrainingError, match=r"training\.batch_size: 4 then, 8 now"):
        store(tmp_path, **long | {"training.batch_size": 8}).read(2)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_an_unreadable_state_is_refused(tmp_path, content) -> None:
    path = write(store(tmp_path), 1)
    (path / "state.json").write_text(content)
    with pytest.raises(TrainingError, match=r"step-00000001"):
        store(tmp_path).read(1)


def test_a_missing_file_and_another_version_are_refused(tmp_path) -> None:
    path = write(store(tmp_path), 1)
    before = (path / "state.json").read_bytes()
    for other in (write_sealed, write_plain):  # those of the first version had no seal
        other(path / "state.json", json.loads(before) | {"version": 99})
        with pytest.raises(TrainingError, match="checkpoint version 99, this build reads 4"):
            store(tmp_path).read(1)
    (path / "state.json").write_bytes(before)
    (path / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"model\.safetensors: No such file"):
        store(tmp_path).read(1)


def test_a_state_with_other_names_is_refused(tmp_path) -> None:
    model, optimizer = trained()
    weights, _ = full_state(model, optimizer)
    weights["stranger"] = weights.pop("layer.bias")
    with pytest.raises(TrainingError, match=r"not the model's .*layer\.bias, stranger"):
        load_full_state(model, None, weights, None)


def test_the_same_step_may_be_written_again(tmp_path) -> None:
    kept = store(tmp_path)
    write(kept, 1, tokens=5)
    write(kept, 1, tokens=6)
    assert kept.read(1)[2].tokens == 6
    assert [path.name for path in kept.folder.iterdir()] == ["step-00000001"]


def test_a_checkpoints_name_is_forced_to_disk_with_its_folder(tmp_path, monkeypatch) -> None:
    """Its files and its folder before the rename, what it lies in behind it."""
    calls = []
    rename = os.rename

    def watched(old: Path, new: Path) -> None:
        rename(old, new)
        calls.append(("rename", Path(new).name))

    monkeypatch.setattr(checkpoint, "flush", lambda path: calls.append(("flush", Path(path).name)))
    monkeypatch.setattr(checkpoint.os, "rename", watched)
    path = write(store(tmp_path), 1)
    files = {("flush", file.name) for file in path.iterdir()}
    place = calls.index(("rename", path.name))
    assert files | {("flush", f".writing-{path.name}")} == set(calls[:place])
    assert calls[place + 1 :] == [("flush", "checkpoints")]
