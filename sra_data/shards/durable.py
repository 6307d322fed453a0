"""Files that are either whole or not there: write beside, force to disk, rename, force the folder.

A crash, a kill or a full disk at any moment leaves the old file, the new file, or a ``.tmp`` that no reader looks at
and the next writer of the same name replaces.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sra_data.errors import ShardError

READ_BYTES = 1 << 23


def explain(error: OSError, path: Path, doing: str) -> ShardError:
    """An error of the operating system as one line with the remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free space there and run the same command again, finished parts are kept"
    else:
        remedy = "check that the folder exists and may be written, then run the same command again"
    reason = error.strerror or str(error)
    return ShardError(f"{path.parent}: {reason} while {doing} {path.name}; {remedy}")


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged(path: Path) -> Iterator[IO[bytes]]:
    """Write ``<path>.tmp`` under a lock; the caller then calls `publish`. Removed if it was not published.

    Raises:
        ShardError: If another process is writing the same file, or the disk refuses.
    """
    temporary = temporary_of(path)
    file = _open_locked(temporary, path)
    try:
        file.truncate(0)
        yield file
    except OSError as error:
        raise explain(error, path, "writing") from error
    finally:
        if _is_still(file, temporary):
            temporary.unlink(missing_ok=True)
        # What a full disk refused is still in the buffer, and closing would refuse again: nobody wants those bytes.
        with suppress(OSError):
            file.close()


def temporary_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".tmp")


def _open_locked(temporary: Path, path: Path) -> IO[bytes]:
    """Open and lock the temporary file, making sure that the lock is on the file of that name.

    Another process may have renamed it between the opening and the lock: what is locked then is its published part.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        except OSError as error:
            raise explain(error, path, "creating") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ShardError(
                f"{path}: another process is writing it; wait for it or stop it, then run again"
            ) from error
        if _is_still(file, temporary):
            return file
        file.close()


def _is_still(file: IO[bytes], temporary: Path) -> bool:
    """Whether the open file is the one of that name; no longer once it is published."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), temporary.stat())
    except FileNotFoundError:
        return False


def publish(file: IO[bytes], path: Path) -> None:
    """Force a `staged` file to disk and give it its name."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(temporary_of(path), path)
    sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any], *, is_flat: bool = False) -> None:
    """Replace a JSON file, whole or not at all; pretty printed for people. `is_flat`: one line for each key."""
    if is_flat:
        lines = [f" {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with staged(path) as file:
        file.write(text.encode())
        publish(file, path)


def read_json(path: Path, *, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        ShardError: If it is missing or damaged; the message ends with `remedy`.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise ShardError(f"{path}: damaged, not JSON ({error}); {remedy}") from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One process at a time changes the folder's manifest; waits for its turn."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
