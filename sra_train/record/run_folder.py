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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sra_data.errors import TrainingError
from sra_train.config import TrainConfig
from sra_train.record.files import write_text
from sra_train.record.identity import refuse_another
from sra_train.record.provenance import ShardFacts, git_state, recorded_versions

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
UNFINISHED = f"{RUN_FILE}.tmp"  # all that a run has written which was killed at once
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what a disk says that takes nothing more


def default_output_dir(config: TrainConfig, student: str) -> str:
    """runs/<method>-<student>, in characters a file system likes."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(student).name).strip("-")
    return f"runs/{config.method.name}-{name}"


def refuse_foreign_folder(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make sure that `folder` is free or this run's; the identity recorded there, None where it is free.

    A shorter run than this one, otherwise the same, is let through: `resuming.py` knows whether it is finished.

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
        wanted = json.loads(json.dumps(identity))
        refuse_another(known, wanted, what=f"{folder}: holds another run", other="another --output-dir")
        return known
    if folder.is_file():
        raise TrainingError(f"{folder}: a file; give another --output-dir")
    if folder.is_dir() and any(path.name != UNFINISHED for path in folder.iterdir()):
        raise TrainingError(f"{folder}: not empty and not the folder of a run; give another --output-dir")
    return None


@contextmanager
def claimed(folder: Path, identity: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Have a run's folder to oneself, and say in one line what the disk refuses meanwhile; the identity recorded there.

    The claim is a lock on the folder: it leaves no file, and ends with the process, however that ends. Where a file
    system has no locks nothing is claimed.

    Raises:
        TrainingError: If another process trains there, the folder is another run's, or it cannot be written.
    """
    refuse_foreign_folder(folder, identity)
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
        yield refuse_foreign_folder(folder, identity)  # it may have become one while nobody had claimed it
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
    folder: Path,
    config: TrainConfig,
    *,
    identity: Mapping[str, Any],
    roots: Mapping[str, str],
    facts: ShardFacts,
    student: Mapping[str, str | None],
    extended_at: Sequence[int] = (),
    determinism: Mapping[str, Any] | None = None,
) -> None:
    """Create the folder and write what the run is made of; a resumed run writes it again.

    Args:
        folder: Of the run.
        config: Resolved.
        identity: Of the run.
        roots: Seals of the folders that are read.
        facts: Of the shards.
        student: Its name, its commit where it is of the Hub, the fingerprint of its starting weights.
        extended_at: Steps at which the finished run was given more: the rates before them are those of a shorter run.
        determinism: Settings that make operations repeat themselves, as this process has them.

    Raises:
        TrainingError: If the folder cannot be written.
    """
    record = {
        "identity": identity,
        "roots": roots,
        "facts": asdict(facts),
        "student": dict(student),
        "versions": recorded_versions(),
        "git": git_state(Path.cwd()),
        "extended_at": list(extended_at),
        "determinism": determinism,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False))  # first: whose folder it is
        write_text(folder / CONFIG_FILE, config.to_yaml())
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); give another --output-dir") from None
