"""Files and folders of a run that are replaced whole: written beside, flushed, and put in place in one move."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sra_data.shards.durable import flush

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link (not what it leads to); nothing where there is none.

    Raises:
        OSError: If it stays.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one move; of one that cannot be written nothing is left."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # in a folder from somebody else it may be a link to another file
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, which may exist: at every moment one of the two is there, whole.

    Where the system cannot exchange two names (other than Linux, some network mounts) there is a moment between two
    renames in which the old one lies beside, as ``.replaced-<name>``.
    """
    old = new
    if not os.path.lexists(folder):
        os.rename(new, folder)
    elif not exchange(new, folder):
        old = folder.with_name(f".replaced-{folder.name}")
        remove(old)
        os.rename(folder, old)
        os.rename(new, folder)
    flush(folder.parent)
    with suppress(OSError):
        remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step; whether the system can.

    Raises:
        OSError: If it can, and refuses.
    """
    call = _renameat2()
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _renameat2() -> Callable[..., int] | None:
    """The C library's, where it has one."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
