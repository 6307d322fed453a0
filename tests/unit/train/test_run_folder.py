"""The folder of a run: one process at a time has it, and what the disk refuses is one line."""

from __future__ import annotations

import errno
import os
from dataclasses import fields
from pathlib import Path

import pytest

from sra_data.errors import TrainingError
from sra_train.config import load_config
from sra_train.record import run_folder
from sra_train.record.provenance import ShardFacts
from sra_train.record.run_folder import claimed

IDENTITY = {"training.seed": 1}


def hold(folder: Path, error: OSError | None = None) -> None:
    """Claim a folder, and have something happen meanwhile."""
    with claimed(folder, IDENTITY):
        if error is not None:
            raise error


def test_a_second_process_in_the_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = "run: another process trains there; wait for it, stop it, or give"
    with claimed(folder, IDENTITY), pytest.raises(TrainingError, match=said):
        hold(folder)
    hold(folder)
    assert list(folder.iterdir()) == []  # the claim is no file


def test_what_the_disk_refuses_meanwhile_is_one_line_and_other_errors_stay_bugs(tmp_path: Path) -> None:
    for error in (OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "no", str(tmp_path))):
        with pytest.raises(TrainingError, match="free space or make it writable, and run the same command") as raised:
            hold(tmp_path, error)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConnectionError):
        hold(tmp_path, ConnectionError(errno.ECONNRESET, "of something else"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written \(Not a directory\); give another --output-dir"):
        hold(tmp_path / "file" / "run")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_in_which_a_run_was_killed_at_its_first_write_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "run.json.tmp").write_text('{"ident')
    hold(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(TrainingError, match="not empty and not the folder of a run"):
        hold(tmp_path)


def test_the_file_that_says_whose_the_folder_is_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(run_folder, "write_text", lambda path, text: written.append(path.name))
    facts = ShardFacts(**{field.name: {} for field in fields(ShardFacts)})
    run_folder.record_run(tmp_path, load_config(), identity=IDENTITY, roots={}, facts=facts, student={})
    assert written == ["run.json", "config.yaml"]
