"""How one file becomes raw rows: JSON lines, JSON arrays, CSV (as they are, .gz or .zst), Parquet, Arrow.

Everything streams and can start anywhere.

A reader takes a path, an offset and the line number that stands there, and yields a `Record` per row. Text formats are
read by line with our own code rather than by a table library, because an error has to name the line, because a byte
offset lets another process start in the middle, and because guessed column types turn the id "007" into 7.

What is refused here: JSON arrays or CSV that cannot be parsed or are not UTF-8, and files that are not whole. One bad
line of JSON lines, one row of a table with a value that cannot be read, is handed on as a `Record` with a problem, so
that the caller decides.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from sra_data.corpus.compressed import data_suffix, open_data, stamp, unreadable
from sra_data.corpus.examples import InvalidRow, shorten
from sra_data.errors import SourceError, one_line

ROWS_PER_READ = 256
CHARACTERS_PER_READ = 1 << 20
LONGEST_ESCAPE = 16  # characters; "\\ud83d\\ude00" is 12
UTF8_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
VALUE_ERRORS = (ValueError, OverflowError, MemoryError, RecursionError)  # of a value Python cannot hold, or no file's
MOST_DIGITS = 4000  # of a whole number; Python refuses to read longer ones


def whole_number(digits: str) -> int | str:
    """A whole number of JSON; one of thousands of digits stays text, for it is surely in a column nobody uses."""
    return int(digits) if len(digits) < MOST_DIGITS else digits


JSON_DECODER = json.JSONDecoder(parse_int=whole_number)


@dataclass(frozen=True, slots=True)
class Record:
    """One raw row: its columns, or the reason why there are none."""

    offset: int
    line: int
    values: dict[str, Any] | None
    problem: InvalidRow | None = None


_decode_json = JSON_DECODER.raw_decode  # of a stripped line `json.loads` is this, and two searches for space

ReadRecords = Callable[[Path, int, int], Iterator[Record]]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system, or a damaged compressed file, says while a file is read, as one line that names it."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error


def _decode(raw: bytes, path: Path, line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}:{line}: not UTF-8 (byte {raw[error.start]:#04x} at {error.start}); convert the file to UTF-8"
        ) from error


def read_jsonl(path: Path, offset: int, line: int) -> Iterator[Record]:
    """One JSON object per line; empty lines are passed over."""
    with open_data(path, offset) as file, naming(path):
        for raw in file:
            start, offset = offset, offset + len(raw)
            if start == 0 and raw.startswith(UTF8_BYTE_ORDER_MARK):
                raw = raw[len(UTF8_BYTE_ORDER_MARK) :]
            if not raw.isspace() and raw:
                yield _parse_json_line(raw, path, start, line)
            line += 1


def _parse_json_line(raw: bytes, path: Path, offset: int, line: int) -> Record:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        found = f"not UTF-8 (byte {raw[error.start]:#04x} at {error.start})"
        return Record(offset, line, None, InvalidRow("not_utf8", found, "convert the file to UTF-8"))
    try:
        value, stop = _decode_json(text)
        if stop != len(text):
            raise json.JSONDecodeError("Extra data", text, stop)
    except (json.JSONDecodeError, RecursionError) as error:
        at = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        problem = InvalidRow("invalid_json", f"invalid JSON ({at}): {shorten(text)}", "mend or delete this line")
        return Record(offset, line, None, problem)
    return _object_record(value, offset, line)


def _object_record(value: Any, offset: int, line: int) -> Record:
    if isinstance(value, dict):
        return Record(offset, line, value)
    problem = InvalidRow(
        "wrong_type", f"a row must be a JSON object, this is a {type(value).__name__}: {shorten(str(value))}", "mend it"
    )
    return Record(offset, line, None, problem)


def read_json(path: Path, offset: int, line: int) -> Iterator[Record]:
    """A JSON array of objects, read piece by piece; a file that does not begin with ``[`` is read as JSON lines."""
    if not _is_array(path, stamp(path)):
        yield from read_jsonl(path, offset, line)
        return
    with open_data(path, offset) as file, naming(path):
        yield from _ArrayReader(path, file, offset, line).records()


@lru_cache(maxsize=64)
def _is_array(path: Path, stamp: tuple[int, int]) -> bool:
    with open_data(path) as file, naming(path):
        return file.read(4096).removeprefix(UTF8_BYTE_ORDER_MARK).lstrip().startswith(b"[")


class _ArrayReader:
    """Cuts a JSON array into its elements with a bounded buffer.

    Every element has to be an object: it ends with a brace, so an element is complete exactly when it parses.
    """

    def __init__(self, path: Path, file: BinaryIO, offset: int, line: int) -> None:
        self.path, self.file, self.offset, self.line = path, file, offset, line
        self.separators = "," if offset else "["
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at = "", 0
        self.ended = False
        if offset == 0:
            head = file.read(len(UTF8_BYTE_ORDER_MARK))
            is_mark = head == UTF8_BYTE_ORDER_MARK
            self.offset = len(UTF8_BYTE_ORDER_MARK) if is_mark else 0
            self._take(b"" if is_mark else head)

    def records(self) -> Iterator[Record]:
        while True:
            self._pass_over(" \t\r\n" + self.separators)
            self.separators = ","
            if self.buffer.startswith("]", self.at):
                self._refuse_more()
                return
            if self.at == len(self.buffer):
                self._fail("the array is not closed")
            value, stop = self._parse_one()
            yield _object_record(value, self.offset, self.line)
            self._advance(stop)

    def _refuse_more(self) -> None:
        """Behind the array's end there is nothing but space: what else stood there would be lost in silence."""
        self._advance(self.at + 1)
        self._pass_over(" \t\r\n")
        if self.at < len(self.buffer):
            self._fail("more behind the end of the array")

    def _parse_one(self) -> tuple[Any, int]:
        size = CHARACTERS_PER_READ
        while True:
            try:
                return JSON_DECODER.raw_decode(self.buffer, self.at)
            except RecursionError:
                self._fail("nested too deep")
            except json.JSONDecodeError as error:
                # An error far from the end of the buffer is the file's; one at the end only says that more is needed.
                cut = error.pos >= len(self.buffer) - LONGEST_ESCAPE or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    self._fail(error.msg)
                self._fill(size)
                size *= 2  # doubling keeps the work linear in the length of one huge element

    def _pass_over(self, characters: str) -> None:
        while True:
            stop = self.at
            while stop < len(self.buffer) and self.buffer[stop] in characters:
                stop += 1
            self._advance(stop)
            if self.at < len(self.buffer) or self.ended:
                return
            self._fill(CHARACTERS_PER_READ)

    def _fill(self, size: int) -> None:
        raw = self.file.read(size)
        self.ended = not raw
        self._take(raw)

    def _take(self, raw: bytes) -> None:
        try:
            self.buffer = self.buffer[self.at :] + self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path}: not UTF-8 after line {self.line} ({error.reason}); convert it") from error
        self.at = 0

    def _advance(self, stop: int) -> None:
        gone = self.buffer[self.at : stop]
        self.at = stop
        self.offset += len(gone.encode("utf-8"))
        self.line += gone.count("\n")

    def _fail(self, reason: str) -> NoReturn:
        raise SourceError(
            f"{self.path}:{self.line}: invalid JSON ({reason}): {shorten(self.buffer[self.at : self.at + 200])}; mend "
            "the file, or write one object per line"
        )


def read_csv(path: Path, offset: int, line: int) -> Iterator[Record]:
    """Comma- or tab-separated values with a header line; quoted values may hold line breaks."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if data_suffix(path) == ".tsv" else ","
    header, first_offset, first_line = _csv_header(path, stamp(path), delimiter)
    if header is None:
        return
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"{path}:1: two columns are called {twice!r}; rename one of them")
    offset, line = (offset, line) if offset else (first_offset, first_line)
    with open_data(path, offset) as file, naming(path):
        lines = _CountedLines(path, file, offset, line)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            start, first_line = lines.offset, lines.line
            try:
                values = next(rows, None)
            except csv.Error as error:
                raise SourceError(f"{path}:{first_line}: invalid CSV ({error}); mend the quotes of this row") from error
            if values is None:
                return
            if values:
                yield _csv_record(header, values, start, first_line)


@lru_cache(maxsize=64)
def _csv_header(path: Path, stamp: tuple[int, int], delimiter: str) -> tuple[list[str] | None, int, int]:
    """The names of the columns, None in an empty file; offset and line where the rows begin."""
    with open_data(path) as file, naming(path):
        lines = _CountedLines(path, file)
        try:
            names = next(csv.reader(lines, delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            raise SourceError(f"{path}:1: invalid CSV ({error}); mend the quotes of the first line") from error
    return names, lines.offset, lines.line


def _csv_record(header: list[str], values: list[str], offset: int, line: int) -> Record:
    if len(values) == len(header):
        return Record(offset, line, dict(zip(header, values, strict=True)))
    problem = InvalidRow(
        "wrong_columns", f"{len(values)} values under {len(header)} columns: {shorten(str(values))}", "mend this row"
    )
    return Record(offset, line, None, problem)


class _CountedLines:
    """Decoded lines of a binary file; knows the offset and number of the line that comes next."""

    def __init__(self, path: Path, file: BinaryIO, offset: int = 0, line: int = 1) -> None:
        self.path, self.file, self.offset, self.line = path, file, offset, line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self.file.readline()
        if not raw:
            raise StopIteration
        start, self.offset = self.offset, self.offset + len(raw)
        self.line += 1
        return _decode(raw.removeprefix(UTF8_BYTE_ORDER_MARK) if start == 0 else raw, self.path, self.line - 1)


# ------------------------------------------------------------------------------------------------ columnar formats


def read_parquet(path: Path, offset: int, line: int) -> Iterator[Record]:
    """Rows of a Parquet file, a few at a time; row groups before `offset` are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            first = 0
            for group in range(file.metadata.num_row_groups):
                stop = first + file.metadata.row_group(group).num_rows
                if stop > offset:
                    batches = file.iter_batches(batch_size=ROWS_PER_READ, row_groups=[group])
                    yield from _batch_records(batches, first=first, offset=offset)
                first = stop
    except (pa.ArrowException, OSError, *VALUE_ERRORS) as error:
        raise _unreadable(path, "Parquet", error) from error


def read_arrow(path: Path, offset: int, line: int) -> Iterator[Record]:
    """Rows of an Arrow file, in the file or the stream form (`datasets` writes streams)."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file:
            yield from _batch_records(_arrow_batches(file), first=0, offset=offset)
    except (pa.ArrowException, OSError, *VALUE_ERRORS) as error:
        raise _unreadable(path, "Arrow", error) from error


def _arrow_batches(file: Any) -> Iterator[Any]:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)


def count_arrow_rows(path: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        return sum(batch.num_rows for batch in _arrow_batches(file))


def _batch_records(batches: Iterable[Any], *, first: int, offset: int) -> Iterator[Record]:
    """Records of record batches from row `offset` on; `first` is the number of the first batch's first row."""
    for batch in batches:
        for start in range(max(0, offset - first), batch.num_rows, ROWS_PER_READ):
            yield from _table_records(batch.slice(start, ROWS_PER_READ), first + start)
        first += batch.num_rows


def _table_records(rows: Any, first: int) -> Iterator[Record]:
    """Records of some rows; where one holds what Python cannot read, the others still are."""
    import pyarrow as pa

    try:
        rows.validate(full=True)  # offsets of a damaged file point anywhere, and Arrow follows them
        values = rows.to_pylist()
    except (*VALUE_ERRORS, pa.ArrowException):
        values = [_row_of(rows.slice(place, 1)) for place in range(rows.num_rows)]
    for index, found in enumerate(values, first):
        is_row = isinstance(found, dict)
        yield Record(index, index + 1, found if is_row else None, None if is_row else found)


def _row_of(row: Any) -> dict[str, Any] | InvalidRow:
    """One row of a table, or which column of it cannot be read."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.validate(full=True)
            found[name] = column[0].as_py()
        except (*VALUE_ERRORS, pa.ArrowException) as error:
            is_no_text = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
            reason = "not UTF-8" if is_no_text else f"damaged ({' '.join(str(error).split())[:100]})"
            return InvalidRow("unreadable_value", f"the value in column {name!r} is {reason}", "mend this row")
    return found


def _unreadable(path: Path, kind: str, error: Exception) -> SourceError:
    reason = one_line(error, 200)
    return SourceError(f"{path}: cannot be read as {kind} ({reason}); check that the file is whole")


COLUMNAR_SUFFIXES = frozenset({".parquet", ".arrow"})
RECORD_READERS: dict[str, ReadRecords] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
