"""Text files of rows, compressed or not: `my.jsonl.gz` and `my.jsonl.zst` read like `my.jsonl`.

Offsets count decompressed bytes. A compressed stream can only be read on, so the one that was read last stays open:
units that follow each other, which is how a process does them, decompress a file once and not once each.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from sra_data.errors import SourceError, one_line

CODECS = {".gz": "gzip", ".zst": "zstd"}
BUFFER_BYTES = 1 << 20


def data_suffix(path: Path) -> str:
    """What kind of rows a file holds: ``.jsonl`` for my.jsonl and my.jsonl.gz alike."""
    return Path(path.stem).suffix if path.suffix in CODECS else path.suffix


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change: what was learnt of a file holds while they stay.

    Raises:
        SourceError: If it cannot be looked at.
    """
    try:
        said = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return said.st_size, said.st_mtime_ns


def open_data(path: Path, offset: int = 0) -> BinaryIO:
    """A file of text at a place, decompressed.

    Raises:
        SourceError: If it cannot be opened, or what is compressed ends before `offset`.
    """
    try:
        if path.suffix not in CODECS:
            file = path.open("rb")
            file.seek(offset)
            return file
        return _latest.open(path, offset)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> SourceError:
    """An error of the system, or of a damaged compressed file, as one line."""
    reason = getattr(error, "strerror", None) or one_line(error, 200)
    kind = " as " + CODECS[path.suffix] if path.suffix in CODECS else ""
    return SourceError(f"{path}: cannot be read{kind} ({reason}); check that it is there, whole and may be read")


class _Content(io.RawIOBase):
    """What a compressed file holds, as a stream."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.OSFile(str(path)), CODECS[path.suffix])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Kept:
    """A file of content that knows how far it has been read; closing it keeps it open for whoever reads on.

    Who reads blocks and uses the beginning of the last one is let back to where he stopped.
    """

    def __init__(self, path: Path, key: tuple[Path, int, int]) -> None:
        self.key, self.place = key, 0
        self._content = io.BufferedReader(_Content(path), BUFFER_BYTES)
        self._block, self._again = b"", b""  # read last; of it, what is to be read again

    def read(self, size: int = -1) -> bytes:
        if self._again:
            data, self._again = (self._again, b"") if size < 0 else (self._again[:size], self._again[size:])
        else:
            self._block = data = self._content.read(size)
        self.place += len(data)
        return data

    def readline(self) -> bytes:
        line = b""
        if self._again:
            stop = self._again.find(b"\n") + 1 or len(self._again)
            line, self._again = self._again[:stop], self._again[stop:]
        if not line.endswith(b"\n"):
            line += self._content.readline()
            self._block = b""
        self.place += len(line)
        return line

    def holds(self, offset: int) -> bool:
        """Whether it can go there."""
        return self.place - offset <= len(self._block) - len(self._again)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def seek(self, offset: int) -> int:
        """Forward, or to where it `holds`."""
        assert self.holds(offset), "a compressed file is read on, not back"
        if offset < self.place:
            self._again = self._block[len(self._block) - len(self._again) - (self.place - offset) :]
            self.place = offset
        while self.place < offset:
            if not self.read(min(BUFFER_BYTES, offset - self.place)):
                raise OSError(f"it ends after {self.place} bytes, {offset} were there before")
        return self.place

    def close(self) -> None:
        _latest.keep(self)

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind in (None, GeneratorExit):  # what failed once is not read on from where it failed
            self.close()


class _Latest:
    """The compressed file that was read last, still open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: _Kept | None = None

    def open(self, path: Path, offset: int) -> BinaryIO:
        """It, if it is this one and not beyond `offset`; else the file from its beginning."""
        key = (path, *stamp(path))
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is None or kept.key != key or not kept.holds(offset):
            kept = _Kept(path, key)
        kept.seek(offset)
        return cast(BinaryIO, kept)

    def keep(self, file: _Kept) -> None:
        """Keep this one, and no other."""
        with self._lock:
            self._kept = file


_latest = _Latest()
