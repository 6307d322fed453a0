"""A run started again: over the weights it began with, from the last whole checkpoint, whatever lies beside."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from sra_data.errors import TrainingError
from sra_train.record import checkpoint
from tests.synthetic_shards import SyntheticShards, make_student
from tests.training_runs import Crashing, Interrupting, Listening, numbers, train, weights

OFTEN = {"checkpoints__every_steps": 2, "checkpoints__keep_last": 9}


def other_weights(folder: Path) -> None:
    """Overwrite a student with one of the same shape."""
    from transformers import AutoTokenizer

    make_student(folder, AutoTokenizer.from_pretrained(folder), dropout=0.0, seed=9)


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flip(path: Path) -> None:
    """Turn one bit of a file around."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --------------------------------------------------------------------------- whose weights


@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_a_run_does_not_go_on_over_another_base_of_the_same_shape(still, tmp_path, lora) -> None:
    base, out = shutil.copytree(still.student, tmp_path / "base"), tmp_path / "out"
    settings = {"student__lora": lora, "training__epochs": 1}
    train(still, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(still, out, Interrupting(2), student__name=str(base), **settings)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other_weights(base)
    said = r"student\.weights: [0-9a-f]{32} then, [0-9a-f]{32} now; the student's starting weights are others: give the"
    with pytest.raises(TrainingError, match=said) as raised:
        train(still, out, student__name=str(base), **settings)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    train(still, out, **settings)  # the same weights lie elsewhere
    assert numbers(out) == numbers(tmp_path / "whole")
    assert equal(weights(out), weights(tmp_path / "whole"))


def test_a_hub_id_that_has_moved_on_is_another_base_until_its_revision_is_named(still, tmp_path, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commits = [name * 40 for name in "ab"]
    cache = tmp_path / "hub" / "models--org--base"
    for commit in commits:
        shutil.copytree(still.student, cache / "snapshots" / commit)
    other_weights(cache / "snapshots" / commits[1])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits[0])
    settings = {"student__name": "org/base", "student__lora": {"r": 4}, "training__epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        train(still, tmp_path / "out", Interrupting(2), **settings)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["student"]["commit"] == commits[0]
    (cache / "refs" / "main").write_text(commits[1])
    with pytest.raises(TrainingError, match=r"a Hub id with student\.revision, its commit is in run\.json"):
        train(still, tmp_path / "out", **settings)
    assert train(still, tmp_path / "out", student__revision=commits[0], **settings).steps == 5


def test_a_base_that_changes_while_training_is_not_exported(still, tmp_path) -> None:
    base, out = shutil.copytree(still.student, tmp_path / "base"), tmp_path / "out"
    settings = {"student__name": str(base), "student__lora": {"r": 4}, "training__epochs": 1}
    overwriting = Listening(lambda step: other_weights(base) if step == 3 else None)
    with pytest.raises(TrainingError, match="its weights have changed since the run began, nothing is exported"):
        train(still, out, overwriting, **settings)
    assert not list(out.glob("*model*"))
    shutil.rmtree(base)
    shutil.copytree(still.student, base)
    assert train(still, out, **settings).model_folder is not None


def test_a_folder_of_an_earlier_build_is_refused_with_the_way_out(still, tmp_path) -> None:
    train(still, tmp_path / "out", training__epochs=1)
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    del record["identity"]["student.weights"]
    path.write_text(json.dumps(record))
    with pytest.raises(
        TrainingError, match=r"student\.weights: absent then, .*; finish it with the build that began it"
    ):
        train(still, tmp_path / "out", training__epochs=1)


# --------------------------------------------------------------------------- what lies beside, what is damaged


def test_what_lies_beside_the_checkpoints_disturbs_nothing_and_stays(still, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(still, whole)
    with pytest.raises(KeyboardInterrupt):
        train(still, out, Interrupting(4))
    folder = out / "checkpoints"
    shutil.copytree(folder / "step-00000004", folder / "step-00000002.bak")
    shutil.copytree(folder / "step-00000004", folder / "best")
    (folder / "step-00000009").write_text("a file")
    (folder / ".writing-notes").mkdir()
    train(still, out)
    assert numbers(out) == numbers(whole)
    assert equal(weights(out), weights(whole))
    assert {"step-00000002.bak", "best", "step-00000009", ".writing-notes"} <= set(os.listdir(folder))


def test_a_damaged_checkpoint_is_passed_over_said_aloud_and_made_again(made, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(made, whole, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        train(made, out, Interrupting(7), **OFTEN)
    folder = out / "checkpoints"
    flip(folder / "step-00000007" / "model.safetensors")
    (folder / "step-00000006" / "state.json").write_text("{")
    listening = Listening()
    # one is kept: what is damaged must not be the one
    train(made, out, listening, checkpoints__every_steps=2, checkpoints__keep_last=1)
    assert len(listening.said("going on from step 5, the last that is whole")) == 2
    assert listening.said("resumed from step 5 of 10")
    assert numbers(out) == numbers(whole)
    assert equal(weights(out), weights(whole))
    assert {"damaged-step-00000006", "damaged-step-00000007", "step-00000010"} <= set(os.listdir(folder))


def test_a_fall_back_that_is_killed_falls_back_again(made, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(made, whole, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        train(made, out, Interrupting(4), **OFTEN)
    flip(out / "checkpoints" / "step-00000004" / "optimizer.safetensors")
    with pytest.raises(RuntimeError, match="crashed behind step 3"):
        train(made, out, Crashing(3), checkpoints__every_steps=2, checkpoints__keep_last=1)
    train(made, out, **OFTEN)
    assert numbers(out) == numbers(whole)
    assert equal(weights(out), weights(whole))


def test_with_no_whole_checkpoint_left_one_line_says_so_and_all_stays(still, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(still, tmp_path / "out", Interrupting(4), **OFTEN)
    for path in (tmp_path / "out" / "checkpoints").glob("*/model.safetensors"):
        flip(path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(
        TrainingError, match=r"no checkpoint is left to go on from: delete .*checkpoints to begin"
    ) as raised:
        train(still, tmp_path / "out", **OFTEN)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "out" / "checkpoints")  # the remedy
    assert train(still, tmp_path / "out", **OFTEN).steps == 10


def test_a_damaged_best_step_is_one_line_with_a_way_out(still, tmp_path) -> None:
    settings = {"training__learning_rate": 1e-30, "training__projector_learning_rate": 1e-30}
    settings |= {"training__min_learning_rate": 0}  # the first evaluation is the best
    assert train(still, tmp_path / "out", **settings).exported_step == 5
    flip(tmp_path / "out" / "checkpoints" / "step-00000005" / "model.safetensors")
    with pytest.raises(TrainingError, match=r"best step cannot be exported; set checkpoints\.export=last"):
        train(still, tmp_path / "out", **settings)
    assert train(still, tmp_path / "out", checkpoints__export="last", **settings).exported_step == 10


# --------------------------------------------------------------------------- metrics


def damage_line(path: Path, number: int, content: bytes) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[number] = content
    path.write_bytes(b"\n".join(lines))


def test_damaged_lines_of_metrics_stop_nothing_and_are_written_again_where_the_run_repeats_them(made, tmp_path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(made, whole, **OFTEN)
    with pytest.raises(RuntimeError, match="crashed behind step 3"):
        train(made, out, Crashing(3), **OFTEN)
    damage_line(out / "metrics.jsonl", 0, b'{"kind": "step", "st')
    damage_line(out / "metrics.jsonl", 2, b"\xff\x00\x00")
    listening = Listening()
    train(made, out, listening, **OFTEN)
    (line,) = listening.said("metrics.jsonl: 2 damaged line(s) dropped")
    assert "those behind step 2 are written again" in line
    assert numbers(out) == numbers(whole)[1:]  # the first step is behind nothing


def test_a_line_that_is_damaged_while_training_stops_nothing(still, tmp_path) -> None:
    path = tmp_path / "out" / "metrics.jsonl"
    damaging = Listening(lambda step: damage_line(path, 1, b"\0" * 9) if step == 4 else None)
    assert train(still, tmp_path / "out", damaging, training__epochs=1).model_folder is not None
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 1 + 5 + 1 - 1


def test_a_kill_between_an_evaluation_made_good_and_its_checkpoint_writes_it_once(
    made: SyntheticShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(made, whole)
    with pytest.raises(KeyboardInterrupt):
        train(made, out, Interrupting(5))  # where an evaluation is due

    def killed(*arguments: object, **named: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(checkpoint.Checkpoints, "write", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(made, out)
    monkeypatch.undo()
    train(made, out)
    assert numbers(out) == numbers(whole)


# --------------------------------------------------------------------------- a full disk


def test_a_disk_that_is_full_at_a_checkpoint_stops_in_one_line_and_leaves_the_former_ones(
    made: SyntheticShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(made, whole, **OFTEN)
    save, calls = checkpoint.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) < 4:  # two files a checkpoint: in the second one the optimizer's is refused
            save(tensors, path)
        else:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match=r"step-00000004: cannot be written \(No space left on device\)") as raised:
        train(made, out, **OFTEN)
    assert "\n" not in str(raised.value)
    assert os.listdir(out / "checkpoints") == ["step-00000002"]
    monkeypatch.undo()
    train(made, out, **OFTEN)
    assert numbers(out) == numbers(whole)
    assert equal(weights(out), weights(whole))


def test_the_first_refusal_of_a_full_disk_is_the_one_that_is_heard(
    still: SyntheticShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sra_train.record import tracking

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    write = tracking.write_text
    monkeypatch.setattr(
        tracking, "write_text", lambda path, text: full() if path.suffix == ".csv" else write(path, text)
    )
    with pytest.raises(TrainingError, match="step-00000005: cannot be written"):
        train(still, tmp_path / "out", training__epochs=1)
