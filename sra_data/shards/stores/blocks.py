"""The bounded cache through which parts in a store are read: blocks of them as files, the least recently used go.

A block is named by the sha256 of the whole part, so it is never stale, whatever store or run it was read for. Any
number of processes and threads share one folder: a block is fetched by whoever holds the lock on its stripe while the
others wait for it, and appears whole, by a rename. Room is taken, under a lock of its own, before anything is written,
so that the folder never weighs more than it may; who finds none left throws away what nobody has read for longest. A
block that is thrown away while it is read stays readable for its reader, and what does not fit is not kept at all.
"""

from __future__ import annotations

import fcntl
import functools
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sra_data.errors import ShardError
from sra_data.shards.durable import explain, make_folder
from sra_data.shards.stores.places import CACHE_GIB, cache_bytes, cache_folder
from sra_data.shards.stores.remote import Remote

BLOCK_BYTES = 4 << 20  # of one request: stores answer in tens of milliseconds, whatever is asked
STRIPES = 256  # locks among which the blocks are divided
AT_ONCE = 8  # requests of one process
KEPT_SHARE = 7 / 8  # of the bound, when room is made: so that it is not made for every block
ROOM, LOCKS = "room", "locks"
Range = tuple[int, int]


@dataclass(frozen=True)
class StoredPart:
    """A part in a store: its key, its bytes' sha256 and how many they are, as its receipt says."""

    remote: Remote
    key: str
    sha256: str
    size: int

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), from the store."""
        return self.remote.range(self.key, start, stop)


class BlockCache:
    """A folder of blocks.

    Attributes:
        folder: where they are.
        limit: bytes they may weigh in all.
        block_bytes: of one block.
    """

    def __init__(self, folder: Path, limit: int, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.folder, self.limit, self.block_bytes = folder, limit, block_bytes
        self._threads: tuple[int, ThreadPoolExecutor] | None = None
        self._making_threads = threading.Lock()
        make_folder(folder / LOCKS)

    # ------------------------------------------------------------------------------------------------------- reading

    def read_into(self, part: StoredPart, at: int, into: memoryview) -> None:
        """Fill `into` with the part's bytes from `at` on, which must be within it.

        Raises:
            ShardError: If the store refuses or does not answer.
        """
        stop = at + len(into)
        lacking = []
        for number in self._numbers((at, stop)):
            first, last = self._span(part, number)
            begin, end = max(first, at), min(last, stop)
            view = into[begin - at : end - at]
            if not self._copy(part, number, begin - first, view):
                lacking.append((number, begin - first, view))
        fetched = self._map(part, [number for number, _, _ in lacking])
        for (_, shift, view), data in zip(lacking, fetched, strict=True):
            view[:] = data[shift : shift + len(view)]

    def fetch(self, part: StoredPart, ranges: Iterable[Range]) -> int:
        """Bring what will be read into the cache, several blocks at a time; the bytes that were not there."""
        numbers = sorted({number for one in ranges for number in self._numbers(one)})
        lacking = [number for number in numbers if not self._has(part, number)]
        return sum(len(data) for data in self._map(part, lacking))

    def forget(self, part: StoredPart) -> bool:
        """Throw away a part's blocks, one of which is damaged; whether there were any."""
        found = list(self._folder_of(part).glob(f"{part.sha256}.*"))
        for path in found:
            path.unlink(missing_ok=True)
        return bool(found)

    # -------------------------------------------------------------------------------------------------------- blocks

    def _numbers(self, one: Range) -> range:
        start, stop = one
        return range(start // self.block_bytes, -(-stop // self.block_bytes))

    def _span(self, part: StoredPart, number: int) -> Range:
        return number * self.block_bytes, min((number + 1) * self.block_bytes, part.size)

    def _folder_of(self, part: StoredPart) -> Path:
        return self.folder / part.sha256[:2]

    def _path(self, part: StoredPart, number: int) -> Path:
        return self._folder_of(part) / f"{part.sha256}.{self.block_bytes}.{number}"

    def _has(self, part: StoredPart, number: int) -> bool:
        """Whether a block is here, which is a use of it."""
        start, stop = self._span(part, number)
        try:
            path = self._path(part, number)
            os.utime(path)
            return path.stat().st_size == stop - start
        except OSError:
            return False

    def _copy(self, part: StoredPart, number: int, shift: int, view: memoryview) -> bool:
        """Copy bytes of a block that is here; False where it is not, or not whole."""
        start, stop = self._span(part, number)
        try:
            handle = os.open(self._path(part, number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            os.utime(handle)
            if os.fstat(handle).st_size != stop - start:
                return False
            done = 0
            while done < len(view):
                count = os.preadv(handle, [view[done:]], shift + done)
                if count == 0:
                    return False
                done += count
            return True
        except OSError:
            return False
        finally:
            os.close(handle)

    def _map(self, part: StoredPart, numbers: Sequence[int]) -> Iterator[bytes]:
        """Blocks from the store, several at a time."""
        bring = functools.partial(self._bring, part)
        return iter([bring(number) for number in numbers]) if len(numbers) < 2 else self._pool().map(bring, numbers)

    def _pool(self) -> ThreadPoolExecutor:
        """The threads of this process: those of a parent do not live in a forked child."""
        with self._making_threads:
            if self._threads is None or self._threads[0] != os.getpid():
                self._threads = (os.getpid(), ThreadPoolExecutor(AT_ONCE, thread_name_prefix="blocks"))
            return self._threads[1]

    def _bring(self, part: StoredPart, number: int) -> bytes:
        """A block, from the store unless somebody has brought it meanwhile; kept where there is room."""
        start, stop = self._span(part, number)
        with self._locked(f"{LOCKS}/{_stripe(part, number):02x}"):
            data = bytearray(stop - start)
            if self._copy(part, number, 0, memoryview(data)):
                return bytes(data)
            found = part.fetch(start, stop)
            self._keep(self._path(part, number), found)
            return found

    def _keep(self, path: Path, data: bytes) -> None:
        """Write a block where there is room for it."""
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(exist_ok=True)
            if self._take_room(temporary, len(data)):
                with suppress(FileNotFoundError):  # whoever made room took it for an old one
                    with temporary.open("r+b") as file:
                        file.write(data)
                    os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise _full(error, path) from error

    # ---------------------------------------------------------------------------------------------------------- room

    def _take_room(self, temporary: Path, size: int) -> bool:
        """Make a file of the size of a block, throwing others away for it; False where it never fits.

        How much is left is written down, so that the folder is looked through only when that is used up.
        """
        if size > self.limit * KEPT_SHARE:
            return False
        with self._locked(ROOM) as file:
            text = file.read().split()
            is_known = len(text) == 2 and all(word.isdigit() for word in text) and int(text[0]) == self.limit
            left = int(text[1]) if is_known else 0
            if left < size:
                left = self.limit - self._make_room(size)
            with temporary.open("xb") as made:
                made.truncate(size)  # it weighs from now on, for whoever makes room before it is written
            file.seek(0)
            file.truncate()
            file.write(f"{self.limit} {left - size}")
            file.flush()
        return True

    def _make_room(self, size: int) -> int:
        """Throw away the least recently used until `size` bytes fit below the share that is kept; what is left."""
        found = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(OSError):
                facts = path.stat()
                found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(weight for _, weight, _ in found)
        for _, weight, path in sorted(found):
            if total + size <= self.limit * KEPT_SHARE:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                total -= weight
        return total

    @contextmanager
    def _locked(self, name: str) -> Iterator[IO[str]]:
        """A file of the folder, locked."""
        path = self.folder / name
        try:
            file = path.open("a+")
        except OSError as error:
            raise _full(error, path) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file


def _stripe(part: StoredPart, number: int) -> int:
    return (int(part.sha256[:8], 16) + number) % STRIPES


def _full(error: OSError, path: Path) -> ShardError:
    remedy = f"free space there, or give the cache another place or less room ({CACHE_GIB})"
    return ShardError(f"{explain(error, path, 'caching').args[0].partition(';')[0]}; {remedy}")


@functools.cache
def _cache(folder: Path, limit: int) -> BlockCache:
    return BlockCache(folder, limit)


def block_cache() -> BlockCache:
    """The cache of this process, where it was chosen to be."""
    return _cache(cache_folder(), cache_bytes())
