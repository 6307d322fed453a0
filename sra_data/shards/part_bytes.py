"""Where the bytes of a part come from: a file, the cache of a store's blocks, or a store without a cache.

A part is read by position: straight into memory of the reader's, or by Parquet's decoder, which opens a file or
something that reads like one.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from sra_data.shards.manifest import Receipt, part_path
from sra_data.shards.stores.blocks import BlockCache, Range, StoredPart, block_cache
from sra_data.shards.stores.mirror import mirror_of

LONGEST_READ = 1 << 30  # Linux reads at most 2 GiB a call
NEAR = 256 << 10  # ranges that are less apart are fetched as one
TAIL = 128 << 10  # where a footer lies, usually
AT_ONCE = 16


class PartBytes(Protocol):
    """The bytes of a part.

    Attributes:
        size: how many.
    """

    size: int

    def read_into(self, into: memoryview, at: int) -> int:
        """Fill memory from a position on; how many bytes there were."""
        ...

    def opened(self) -> str | pa.NativeFile:
        """What Parquet's decoder opens."""
        ...

    def fetch(self, ranges: Sequence[Range]) -> int:
        """Bring what will be read nearer, several ranges at a time; the bytes that came from far."""
        ...

    def forget(self) -> bool:
        """Throw away what was kept of it, which may be damaged; whether there was anything."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class FileBytes:
    """Of a file."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            OSError: If it cannot be opened.
            ValueError: If it is no file.
        """
        self.path = path
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for
            raise ValueError("no regular file")
        self.size = facts.st_size
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, into: memoryview, at: int) -> int:
        """See `PartBytes`."""
        done = 0
        while done < len(into):
            count = os.preadv(self._handle, [into[done : done + LONGEST_READ]], at + done)
            if count == 0:
                break
            done += count
        return done

    def opened(self) -> str | pa.NativeFile:
        """See `PartBytes`."""
        return os.fspath(self.path)

    def fetch(self, ranges: Sequence[Range]) -> int:
        """Nothing is nearer than a file."""
        return 0

    def forget(self) -> bool:
        """Nothing is kept."""
        return False

    def close(self) -> None:
        """See `PartBytes`."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class CachedBytes:
    """Of a part in a store, by blocks that stay on this machine for a while."""

    def __init__(self, part: StoredPart, cache: BlockCache) -> None:
        self.part, self.cache, self.size = part, cache, part.size

    def read_into(self, into: memoryview, at: int) -> int:
        """See `PartBytes`."""
        count = max(min(len(into), self.size - at), 0)
        if count:
            self.cache.read_into(self.part, at, into[:count])
        return count

    def opened(self) -> str | pa.NativeFile:
        """See `PartBytes`."""
        return pa.PythonFile(_Seekable(self), mode="r")

    def fetch(self, ranges: Sequence[Range]) -> int:
        """See `PartBytes`."""
        return self.cache.fetch(self.part, ranges)

    def forget(self) -> bool:
        """See `PartBytes`."""
        return self.cache.forget(self.part)

    def close(self) -> None:
        """Nothing is open."""


class FetchedBytes:
    """Of a part in a store of which little is read, and once: exactly the ranges that were asked for, in memory."""

    def __init__(self, part: StoredPart) -> None:
        self.part, self.size = part, part.size
        self._held: list[tuple[int, bytes]] = []
        self.fetch([(max(part.size - TAIL, 0), part.size)])

    def read_into(self, into: memoryview, at: int) -> int:
        """See `PartBytes`."""
        count = max(min(len(into), self.size - at), 0)
        for start, data in self._held:
            if start <= at and at + count <= start + len(data):
                into[:count] = data[at - start : at - start + count]
                return count
        into[:count] = self.part.fetch(at, at + count) if count else b""
        return count

    def opened(self) -> str | pa.NativeFile:
        """See `PartBytes`."""
        return pa.PythonFile(_Seekable(self), mode="r")

    def fetch(self, ranges: Sequence[Range]) -> int:
        """See `PartBytes`."""
        wanted = joined(ranges)
        with ThreadPoolExecutor(max(min(AT_ONCE, len(wanted)), 1), thread_name_prefix="ranges") as threads:
            found = list(threads.map(lambda one: self.part.fetch(*one), wanted))
        self._held += [(start, data) for (start, _), data in zip(wanted, found, strict=True)]
        return sum(map(len, found))

    def forget(self) -> bool:
        """See `PartBytes`."""
        had, self._held = bool(self._held), []
        return had

    def close(self) -> None:
        """See `PartBytes`."""
        self._held = []


class _Seekable(io.RawIOBase):
    """Bytes of a part as a file that Python reads."""

    def __init__(self, bytes_of: CachedBytes | FetchedBytes) -> None:
        super().__init__()
        self._bytes, self._at = bytes_of, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._bytes.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._bytes.size - self._at, 0)
        data = bytearray(left if size is None or size < 0 else min(size, left))
        self._at += self._bytes.read_into(memoryview(data), self._at)
        return bytes(data)


def bytes_of(folder: Path, receipt: Receipt, *, is_read_once: bool = False) -> PartBytes:
    """The bytes of a part that its receipt says is there.

    Args:
        folder: of parts.
        receipt: of the part.
        is_read_once: of a part in a store: do not keep what is read.

    Raises:
        OSError: If its file cannot be opened; ValueError if it is none.
        ShardError: If a store refuses.
    """
    path = part_path(folder, receipt.part)
    mirror = mirror_of(folder)
    if mirror is None or path.is_file():
        return FileBytes(path)
    part = StoredPart(mirror.remote, mirror.large_key(path, receipt.sha256), receipt.sha256, receipt.bytes)
    return FetchedBytes(part) if is_read_once else CachedBytes(part, block_cache())


def joined(ranges: Sequence[Range], near: int = NEAR) -> list[Range]:
    """The ranges in order, those that overlap or nearly touch as one."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1] + near:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        elif stop > start:
            found.append((start, stop))
    return found
