"""Files that are either whole or not there: write beside, force to disk, rename, force the folder.

A crash, a kill or a full disk at any moment leaves the old file, the new file, or a ``.tmp`` that no reader looks at.
The next writer of the same name replaces it, and whoever ends the work on a folder removes those that nobody holds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sra_data.errors import ShardError, one_line

TEMPORARY = ".tmp"  # the end of the name of what is being written
SEAL = "seal"  # the last key of every JSON file: sha256 of what stands before it
LARGEST_JSON = 1 << 29  # a plan of ten million units


def explain(error: OSError, path: Path, doing: str) -> ShardError:
    """An error of the operating system as one line with the remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free space there and run the same command again, finished parts are kept"
    else:
        remedy = "check that the folder exists and may be written, then run the same command again"
    reason = error.strerror or str(error)
    return ShardError(f"{path.parent}: {reason} while {doing} {path.name}; {remedy}")


def make_folder(folder: Path) -> None:
    """Make a folder, and those it is in, where they are not there.

    Raises:
        ShardError: If the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, folder, "making") from error


def flush(path: Path) -> None:
    """Force a file to disk, or a folder's entries, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class BeingWritten(ShardError):
    """Another process is writing a file, and nobody wants to wait for it."""


@contextmanager
def staged(path: Path, *, wait: bool = True) -> Iterator[IO[bytes]]:
    """Write ``<path>.tmp`` under a lock; the caller then calls `publish`. Removed if it was not published.

    Args:
        path: What it will be.
        wait: Whether to wait for another process that is writing the same file.

    Raises:
        BeingWritten: If another process is writing it, and `wait` is false.
        ShardError: If the disk refuses.
    """
    temporary = temporary_of(path)
    file = _open_locked(temporary, path, wait)
    try:
        file.truncate(0)
        yield file
    except OSError as error:
        raise explain(error, path, "writing") from error
    finally:
        # A disk that takes nothing any more does not give back either: `remove_abandoned` does it later.
        with suppress(OSError):
            if _is_still(file, temporary):
                temporary.unlink(missing_ok=True)
        # What a full disk refused is still in the buffer, and closing would refuse again: nobody wants those bytes.
        with suppress(OSError):
            file.close()


def temporary_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + TEMPORARY)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of a folder that nobody holds: whoever wrote them was killed.

    The lock decides, as it does among writers: one that is held is left alone, and a writer that opens a file in the
    moment in which it goes finds out when it has the lock, and opens another.
    """
    for temporary in folder.glob(f"*{TEMPORARY}"):
        with suppress(OSError), temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, temporary):
                temporary.unlink()


def _open_locked(temporary: Path, path: Path, wait: bool) -> IO[bytes]:
    """Open and lock the temporary file, making sure that the lock is on the file of that name.

    Another process may have renamed it between the opening and the lock: what is locked then is what it published.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A link of that name, in a folder from somebody else, would lead the writing to another file.
            how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.fdopen(os.open(temporary, how, 0o666), "r+b")
        except OSError as error:
            raise explain(error, path, "creating") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BeingWritten(
                f"{path}: another process is writing it; wait for it or stop it, then run again"
            ) from error
        except OSError as error:
            file.close()
            raise explain(error, path, "locking") from error
        except BaseException:  # an interrupt while it waited
            file.close()
            raise
        if _is_still(file, temporary):
            return file
        file.close()


def _is_still(file: IO[bytes], temporary: Path) -> bool:
    """Whether the open file is the one of that name; no longer once it is published."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), temporary.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def publish(file: IO[bytes], path: Path) -> None:
    """Force a `staged` file to disk and give it its name."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(temporary_of(path), path)
    flush(path.parent)


def write_sealed(path: Path, value: Mapping[str, Any], *, is_flat: bool = False) -> None:
    """Replace a JSON file, whole or not at all, sealed by its own digest; `is_flat`: one line for each key."""
    with staged(path) as file:
        file.write(sealed_bytes(value, is_flat=is_flat))
        publish(file, path)


def sealed_bytes(value: Mapping[str, Any], *, is_flat: bool = False) -> bytes:
    """What `write_sealed` writes: pretty printed for people, `seal` last, the sha256 of all that stands before it."""
    said = {key: item for key, item in value.items() if key != SEAL}
    return _rendered({**said, SEAL: seal_of(said, is_flat=is_flat)}, is_flat)


def seal_of(value: Mapping[str, Any], *, is_flat: bool = False) -> str:
    """sha256 of a JSON file without its seal."""
    return hashlib.sha256(_rendered({key: item for key, item in value.items() if key != SEAL}, is_flat)).hexdigest()


def _rendered(value: Mapping[str, Any], is_flat: bool) -> bytes:
    if not is_flat:
        return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    lines = [f" {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


@dataclass(frozen=True)
class Document:
    """A JSON file as it was read.

    Attributes:
        value: its object.
        seal: what it says of itself.
        is_whole: whether the very bytes of the file are those that were written, by its own seal.
    """

    value: dict[str, Any]
    seal: str
    is_whole: bool


def _is_sealed(content: bytes, seal: str) -> bool:
    """Whether a file ends with its seal, which is that of its very bytes: without it they are a JSON file too."""
    end = f',\n "{SEAL}": "{seal}"\n}}\n'.encode()
    return content.endswith(end) and hashlib.sha256(content.removesuffix(end) + b"\n}\n").hexdigest() == seal


def read_document(path: Path, *, remedy: str) -> Document:
    """Read a JSON file that `write_sealed` wrote.

    Raises:
        ShardError: If it is missing or no JSON object; the message ends with `remedy`.
    """
    try:
        content = _read_bounded(path)
        value = json.loads(content)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} in place of an object")
        seal = str(value.get(SEAL))
        return Document(value, seal, _is_sealed(content, seal))
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        said = one_line(error)
        raise ShardError(f"{path}: damaged, not JSON as it was written ({said}); {remedy}") from error


def _read_bounded(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise ValueError("no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"longer than {LARGEST_JSON} bytes")
    return content


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One process at a time changes the folder's manifest; waits for its turn.

    Raises:
        ShardError: If the folder is gone, or cannot be locked.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise explain(error, folder, "locking") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise explain(error, folder, "locking") from error
        yield
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
