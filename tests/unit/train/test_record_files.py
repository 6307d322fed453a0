"""Files and folders of a run that are replaced: the old or the new, whole, at every moment; nothing half stays."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sra_train.record import files
from sra_train.record.files import exchange, remove, replace_folder, write_text


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "content").write_text(content)
    return path


def can_exchange(where: Path) -> bool:
    return exchange(folder_of(where / "a", ""), folder_of(where / "b", ""))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where two names can be exchanged."""
    (tmp_path / "try").mkdir()
    if not can_exchange(tmp_path / "try"):
        pytest.skip("this file system cannot exchange two names")
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_reader_always_finds_one_of_the_two(place: Path) -> None:
    folder, missing, is_over = folder_of(place / "model", "0"), [], threading.Event()

    def read() -> None:
        while not is_over.is_set():
            if not folder.is_dir():
                missing.append(folder)

    reader = threading.Thread(target=read)
    reader.start()
    for count in range(1, 300):
        replace_folder(folder_of(place / "new", str(count)), folder)
    is_over.set()
    reader.join()
    assert not missing
    assert (folder / "content").read_text() == "299"
    assert os.listdir(place) == ["model"]


@pytest.mark.parametrize("can", [True, False])
def test_what_was_there_is_replaced_and_nothing_is_left_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    if not can:
        monkeypatch.setattr(files, "_renameat2", lambda: None)
    folder = tmp_path / "model"
    for content in ("first", "second", "third"):
        replace_folder(folder_of(tmp_path / "new", content), folder)
        assert (folder / "content").read_text() == content
        assert os.listdir(tmp_path) == ["model"]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", "mine")
    (tmp_path / "model").symlink_to(own)
    replace_folder(folder_of(tmp_path / "new", "new"), tmp_path / "model")
    assert (tmp_path / "model" / "content").read_text() == "new"
    assert (own / "content").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["model", "own"]


def test_what_the_system_refuses_is_an_error_and_what_it_cannot_do_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "nowhere", folder_of(tmp_path / "there", ""))
    monkeypatch.setattr(files.ctypes, "get_errno", lambda: errno.EINVAL)
    assert not exchange(tmp_path / "nowhere", tmp_path / "there")


def test_removing_takes_a_folder_a_file_a_link_or_nothing(tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", "mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(own)
    folder_of(tmp_path / "folder", "")
    for name in ("file", "link", "folder", "nothing"):
        remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["own"]
    assert (own / "content").read_text() == "mine"


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "run.json", "old")

    def full(path: Path, text: str, **named: str) -> None:
        path.write_bytes(b"n")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "run.json", "new")
    assert os.listdir(tmp_path) == ["run.json"]
    assert (tmp_path / "run.json").read_text() == "old"
