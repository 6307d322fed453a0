"""The folder of a run: whose it is, what it records, and that no other run ever writes into it.

config.yaml       the resolved configuration, readable by `load_config`
run.json          identity, seals of the shards, versions, git state
metrics.jsonl/csv, plots/, checkpoints/, model/
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sra_data.errors import TrainingError
from sra_train.config import TrainConfig, differences
from sra_train.record.provenance import ShardFacts, git_state, recorded_versions

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
METRICS_FILES = ("metrics.jsonl", "metrics.csv")
FOLDERS = ("checkpoints", "model", "plots")
UNFINISHED = f"{RUN_FILE}.tmp"  # all that a run has written which was killed at once
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what a disk says that takes nothing more


def default_output_dir(config: TrainConfig, student: str) -> str:
    """runs/<method>-<student>, in characters a file system likes."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(student).name).strip("-")
    return f"runs/{config.method.name}-{name}"


def refuse_foreign_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make sure that `folder` is free or this run's.

    Raises:
        TrainingError: If it belongs to another run or holds something else.
    """
    path = folder / RUN_FILE
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))["identity"]
            if not isinstance(known, dict):
                raise TypeError("identity is no object")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise TrainingError(f"{path}: damaged ({error}); give another --output-dir or delete the folder") from None
        changed = differences(known, json.loads(json.dumps(identity)))
        if changed:
            raise TrainingError(
                f"{folder}: holds another run: {'; '.join(changed)}; give the old values or another --output-dir"
            )
    elif folder.is_file():
        raise TrainingError(f"{folder}: a file; give another --output-dir")
    elif folder.is_dir() and any(path.name != UNFINISHED for path in folder.iterdir()):
        raise TrainingError(f"{folder}: not empty and not the folder of a run; give another --output-dir")


def refuse_unreadable(folder: Path) -> None:
    """Refuse a folder that cannot be looked into, or can be none.

    Raises:
        TrainingError: With what the system says.
    """
    try:
        if folder.is_dir():
            next(folder.iterdir(), None)
    except OSError as error:
        raise TrainingError(f"{folder}: {error.strerror}; give another --output-dir") from None


def refuse_misshapen(folder: Path) -> None:
    """Refuse a run's folder with a file where a folder is to be, or the other way round, before anything is written.

    Raises:
        TrainingError: Naming it.
    """
    for name in FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise TrainingError(f"{folder / name}: no folder; move it away, or give another --output-dir")
    for name in (CONFIG_FILE, *METRICS_FILES):
        if (folder / name).exists() and not (folder / name).is_file():
            raise TrainingError(f"{folder / name}: no file; move it away, or give another --output-dir")


@contextmanager
def claimed(folder: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Have a run's folder to oneself, and say in one line what the disk refuses meanwhile.

    The claim is a lock on the folder: it leaves no file, and ends with the process, however that ends. Where a file
    system has no locks nothing is claimed.

    Raises:
        TrainingError: If another process trains there, the folder is another run's, or it cannot be written.
    """
    refuse_unreadable(folder)
    refuse_foreign_folder(folder, identity)
    refuse_misshapen(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); give another --output-dir") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"{folder}: another process trains there; wait for it, stop it, or give another --output-dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        refuse_foreign_folder(folder, identity)  # it may have become one while nobody had claimed it
        yield
    except OSError as error:
        if error.errno in REFUSED or str(error.filename).startswith(str(folder)):
            raise TrainingError(
                f"{folder}: {error.strerror or error}; free space or make it writable, and run the same command again,"
                " it goes on from the last checkpoint"
            ) from error
        raise
    finally:
        os.close(handle)


def record_run(
    folder: Path, config: TrainConfig, *, identity: Mapping[str, Any], roots: Mapping[str, str], facts: ShardFacts
) -> None:
    """Create the folder and write what the run is made of; a resumed run writes it again.

    Raises:
        TrainingError: If the folder cannot be written.
    """
    record = {
        "identity": identity,
        "roots": roots,
        "facts": asdict(facts),
        "versions": recorded_versions(),
        "git": git_state(Path.cwd()),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False))  # first: whose folder it is
        write_text(folder / CONFIG_FILE, config.to_yaml())
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); give another --output-dir") from None


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one move."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # in a folder from somebody else it may be a link to another file
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
